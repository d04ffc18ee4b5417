// The driver of the client library for TypeScript: clients/situations/README.md has its commands.
//
// Usage: node .cache/build/tools/driver.js
import { readFileSync } from 'node:fs';
import { createServer, request as httpRequest } from 'node:http';
import type { AddressInfo } from 'node:net';
import { createInterface } from 'node:readline';
import { setImmediate as yieldToOthers } from 'node:timers/promises';

import { status as Code } from '@grpc/grpc-js';

import type { Answer } from '../src/answer.js';
import { Client } from '../src/client.js';
import type { Demands } from '../src/demands.js';
import { CountersignError } from '../src/errors.js';
import { protect, sessionOf } from '../src/express.js';
import { ValidateView } from '../src/gen/countersign/v1/session_service_pb.js';
import { BuildError } from '../src/options.js';
import { answerOf, Verifier } from '../src/verifier.js';
import { WrongClock } from './wrong-clock.js';

type Json = Record<string, unknown>;

/** The members of a command. Those that are missing are `undefined`. */
class Command {
  readonly #members: Json;

  constructor(line: string) {
    this.#members = JSON.parse(line) as Json;
  }

  text(name: string): string | undefined {
    return this.#members[name] as string | undefined;
  }

  required(name: string): string {
    const text = this.text(name);
    if (text === undefined) throw new Error(`the command needs the member ${name}`);
    return text;
  }

  number(name: string): number | undefined {
    return this.#members[name] as number | undefined;
  }

  flag(name: string): boolean {
    return this.#members[name] === true;
  }

  list(name: string): string[] | undefined {
    return this.#members[name] as string[] | undefined;
  }

  pairs(name: string): [string, string][] {
    return (this.#members[name] ?? []) as [string, string][];
  }

  /** Returns the contents of the file that a member names. */
  file(name: string): Buffer | undefined {
    const path = this.text(name);
    return path === undefined ? undefined : readFileSync(path);
  }

  get demands(): Demands {
    const demands = (this.#members['demands'] ?? {}) as {
      audience?: string;
      scopes?: string[];
      acr_values?: string[];
      max_authentication_age?: number;
      factors?: { method: string; max_age?: number }[];
    };
    return {
      audience: demands.audience,
      scopes: demands.scopes,
      acrValues: demands.acr_values,
      maxAuthenticationAgeSeconds: demands.max_authentication_age,
      factors: demands.factors?.map(({ method, max_age }) => ({ method, maxAgeSeconds: max_age })),
    };
  }
}

/** The result of an application that works in the background. */
interface Load {
  isEnding: boolean;
  rounds: number;
  failed: number;
  errors: string[];
  ended: Promise<void>;
}

class Driver {
  readonly #clock = new WrongClock();
  #client: Client | undefined;
  #verifier: Verifier | undefined;
  #load: Load | undefined;

  get client(): Client {
    if (this.#client === undefined) throw new Error('there is no client: connect first');
    return this.#client;
  }

  get verifier(): Verifier {
    if (this.#verifier === undefined) throw new Error('there is no verifier');
    return this.#verifier;
  }

  async carryOut(command: Command): Promise<Json> {
    switch (command.required('do')) {
      case 'connect':
        return this.#connect(command);
      case 'verifier':
        this.#verifier?.close();
        this.#verifier = this.#newVerifier(command);
        return {};
      case 'ready':
        return this.#ready(command.number('within_ms') ?? 0);
      case 'verify':
        return answered(await this.verifier.verify(command.required('token'), command.demands));
      case 'guard':
        return this.#guard(command);
      case 'create':
        return orError(() => this.#create(command));
      case 'refresh':
        return orError(() => this.#refresh(command.required('refresh_token')));
      case 'revoke':
        return orError(async () => {
          await this.#revoke(command.required('token'));
          return {};
        });
      case 'validate':
        return orError(async () => {
          const accessToken = command.required('token');
          const view = ValidateView.FULL;
          return answered(answerOf(await this.client.validate({ accessToken, view })));
        });
      case 'clock': {
        const uptime = command.number('uptime_ms') ?? 0;
        this.#clock.lost -= uptime;
        this.#clock.ahead += (command.number('wall_ms') ?? 0) - uptime;
        return {};
      }
      case 'load':
        this.#begin(command.required('subject'));
        return {};
      case 'load_end':
        return this.#end();
      default:
        throw new Error(`the command ${command.required('do')} is not known`);
    }
  }

  close(): void {
    this.#verifier?.close();
    this.#client?.close();
    this.#verifier = this.#client = undefined;
  }

  #connect(command: Command): Json {
    this.close();
    const [certificate, key] = [command.file('certificate'), command.file('key')];
    try {
      this.#client = new Client({
        endpoints: command.list('endpoints') ?? [],
        apiKey: command.text('api_key'),
        caCertificate: command.file('ca'),
        clientCertificate: certificate && key && { certificate, key },
        serverName: command.text('server_name'),
        deadlineMs: command.number('deadline_ms'),
        revocationDeadlineMs: command.number('revocation_deadline_ms'),
        connectTimeoutMs: command.number('connect_timeout_ms'),
      });
    } catch (error) {
      if (error instanceof BuildError) return { refused: true };
      throw error;
    }
    return {};
  }

  #newVerifier(command: Command): Verifier {
    const clock = this.#clock;
    switch (command.required('mode')) {
      case 'remote':
        return Verifier.remote(this.client);
      case 'local': {
        const onLapse = command.flag('refuse') ? 'refuse' : 'validate';
        return Verifier.local(this.client, { onLapse, clock });
      }
      case 'local_unwatched':
        return Verifier.localUnwatched(this.client, command.required('issuer'), { clock });
      default:
        throw new Error('the mode is not known');
    }
  }

  async #ready(within: number): Promise<Json> {
    const signal = AbortSignal.timeout(within);
    try {
      await this.verifier.ready(signal);
    } catch (error) {
      if (signal.aborted) return { ready: false };
      throw error;
    }
    return { ready: true };
  }

  /** Asks an application for HTTP that the middleware protects. */
  async #guard(command: Command): Promise<Json> {
    const guard = protect(this.verifier, command.demands, {
      cookie: command.text('cookie'),
      realm: command.text('realm'),
    });
    const server = createServer((request, response) => {
      guard(request, response, (error) => {
        response.statusCode = error === undefined ? 200 : 500;
        response.end(error === undefined ? sessionOf(request).subject : '');
      });
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const { port } = server.address() as AddressInfo;
    // Each character of a header stands for a byte.
    const bytes = (text: string): string => Buffer.from(text).toString('latin1');
    const headers = [['host', 'shop.test'], ...command.pairs('headers')].flat().map(bytes);
    try {
      return await new Promise<Json>((resolve, reject) => {
        const asked = httpRequest(
          { port, host: '127.0.0.1', headers, agent: false },
          (response) => {
            const parts: Buffer[] = [];
            response.on('data', (part: Buffer) => parts.push(part));
            response.on('end', () => {
              const status = response.statusCode ?? 0;
              const challenge = response.headers['www-authenticate'];
              const subject = Buffer.concat(parts).toString();
              resolve({
                status,
                ...(challenge !== undefined && {
                  challenge: Buffer.from(challenge, 'latin1').toString(),
                }),
                ...(status === 200 && { subject }),
              });
            });
          },
        );
        asked.on('error', reject);
        asked.end();
      });
    } finally {
      server.close();
    }
  }

  async #create(command: Command): Promise<Json> {
    const { session, tokens } = await this.client.createSession({
      subject: command.required('subject'),
      scopes: command.list('scopes') ?? [],
      tenant: command.text('tenant') ?? '',
      audience: command.list('audience') ?? [],
    });
    return {
      session_id: session?.sessionId,
      access_token: tokens?.accessToken,
      refresh_token: tokens?.refreshToken,
    };
  }

  async #refresh(refreshToken: string): Promise<Json> {
    const { tokens } = await this.client.refresh({ refreshToken });
    return { access_token: tokens?.accessToken, refresh_token: tokens?.refreshToken };
  }

  async #revoke(token: string): Promise<void> {
    await this.client.revoke({ target: { case: 'token', value: token } });
  }

  #begin(subject: string): void {
    const load: Load = {
      isEnding: false,
      rounds: 0,
      failed: 0,
      errors: [],
      ended: Promise.resolve(),
    };
    this.#load = load;
    load.ended = this.#work(subject, load);
  }

  async #end(): Promise<Json> {
    const load = this.#load;
    if (load === undefined) throw new Error('there is no load');
    load.isEnding = true;
    await load.ended;
    this.#load = undefined;
    return { rounds: load.rounds, failed: load.failed, errors: load.errors };
  }

  /** Makes rounds until it is to end. */
  async #work(subject: string, load: Load): Promise<void> {
    const { client, verifier } = this;
    const fail = (problem: string): void => {
      load.failed++;
      if (load.errors.length < 10) load.errors.push(problem);
    };
    const attempt = async <T>(what: string, call: () => Promise<T>): Promise<T | undefined> => {
      try {
        return await call();
      } catch (error) {
        fail(`${what}: ${error instanceof Error ? error.message : String(error)}`);
        return undefined;
      }
    };
    const verify = async (token: string, expected: Answer['status']): Promise<void> => {
      const answer = await verifier.verify(token);
      if (answer.status === expected) return;
      fail(`${JSON.stringify(answered(answer))} instead of ${expected}`);
    };
    const isEnding = (): boolean => load.isEnding;
    do {
      const created = await attempt('create', () => client.createSession({ subject }));
      const first = created?.tokens;
      if (first !== undefined) {
        await verify(first.accessToken, 'active');
        const { refreshToken } = first;
        const refreshed = await attempt('refresh', () => client.refresh({ refreshToken }));
        const second = refreshed?.tokens;
        if (second !== undefined) await verify(second.accessToken, 'active');
        const last = (second ?? first).accessToken;
        const revoked = await attempt('revoke', async () => {
          await this.#revoke(last);
          return true;
        });
        if (revoked === true) await verify(last, 'inactive');
      }
      load.rounds++;
      await yieldToOthers();
    } while (!isEnding());
  }
}

function answered(answer: Answer): Json {
  switch (answer.status) {
    case 'active':
      return { answer: 'ACTIVE', subject: answer.session.subject };
    case 'inactive':
      return { answer: 'INACTIVE', reason: answer.reason };
    case 'unknown':
      return { answer: 'UNKNOWN' };
  }
}

/** Makes a call, and returns its error if it fails. */
async function orError(call: () => Promise<Json>): Promise<Json> {
  try {
    return await call();
  } catch (error) {
    if (!(error instanceof CountersignError)) throw error;
    const { reason, code, retryAfterMs } = error;
    return {
      error: reason === '' ? Code[code] : reason,
      ...(retryAfterMs !== undefined && { retry_after_ms: retryAfterMs }),
    };
  }
}

const driver = new Driver();
for await (const line of createInterface({ input: process.stdin })) {
  const answer = await driver.carryOut(new Command(line));
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
driver.close();
