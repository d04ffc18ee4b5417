// A watcher by the client library for TypeScript, for the torture test.
//
// It speaks the lines that tests/torture/watcher/watcher.py and altered.py describe: a local
// verifier, which never calls Validate. A line `clock AHEAD LOST` sets its clocks.
//
// Usage: node .cache/build/tools/watcher.js ADDRESS...
import { createInterface } from 'node:readline';

import type { Answer } from '../src/answer.js';
import { Client } from '../src/client.js';
import { Verifier } from '../src/verifier.js';
import { WrongClock } from './wrong-clock.js';

/** Returns an answer as the test reads it. */
function word(answer: Answer): string {
  switch (answer.status) {
    case 'active':
      return 'active';
    case 'inactive':
      return `inactive ${answer.reason}`;
    case 'unknown':
      return `unknown ${answer.why.toUpperCase()}`;
  }
}

const clock = new WrongClock();
const endpoints = process.argv.slice(2).map((address) => `http://${address}`);
const client = new Client({ endpoints });
const verifier = Verifier.local(client, { onLapse: 'refuse', clock });

/** Answers a line. */
function serve(line: string): void {
  const [first = '', ...others] = line.split(' ');
  if (first === 'clock') {
    const [ahead = 0, lost = 0] = others.map((nanoseconds) => Number(nanoseconds) / 1e6);
    clock.ahead = ahead;
    clock.lost = lost;
    return;
  }
  const begin = process.hrtime.bigint();
  const answer = verifier.verifyLocally(others[0] ?? '');
  const end = process.hrtime.bigint();
  process.stdout.write(`${first} 1 ${times(begin, end)} ${times(begin, end)} ${word(answer)}\n`);
}

function times(begin: bigint, end: bigint): string {
  return `${begin.toString()} ${end.toString()}`;
}

createInterface({ input: process.stdin })
  .on('line', serve)
  .on('close', () => {
    verifier.close();
    client.close();
  });
