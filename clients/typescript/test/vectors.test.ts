// These tests run the vectors that all client libraries share (clients/vectors).
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import { fromBinary, fromJson } from '@bufbuild/protobuf';

import { SettableClock } from '../src/core/clock.js';
import { Local } from '../src/core/local.js';
import type { Demands } from '../src/demands.js';
import {
  type WatchResponse,
  WatchResponseSchema,
} from '../src/gen/countersign/v1/revocation_service_pb.js';
import type { Session } from '../src/session.js';
import { Verifier } from '../src/verifier.js';
import { StreamState, Watching } from '../src/watching.js';
import { QUIET, repository } from './support.js';

/** A check that a vector describes, with its answer. */
interface Question {
  name: string;
  token: string;
  demands?: {
    audience?: string;
    scopes?: string[];
    acr_values?: string[];
    max_authentication_age?: number;
    factors?: { method: string; max_age?: number }[];
  };
  answer: string;
  session?: unknown;
}

interface TokensFile {
  at: number;
  issuer: string;
  max_lifetime: number;
  leeway: number;
  jwks: unknown;
  vectors: Question[];
}

interface Step extends Question {
  step: string;
  cursor?: string;
  applied?: string;
  message?: string;
  wall_ms?: number;
  uptime_ms?: number;
}

interface FeedsFile {
  feeds: { name: string; wall_ms: number; tokens: Record<string, string>; steps: Step[] }[];
}

function read(file: string): unknown {
  return JSON.parse(readFileSync(`${repository}/clients/vectors/${file}.json`, 'utf8'));
}

function demandsOf({ demands = {} }: Question): Demands {
  return {
    audience: demands.audience,
    scopes: demands.scopes,
    acrValues: demands.acr_values,
    maxAuthenticationAgeSeconds: demands.max_authentication_age,
    factors: demands.factors?.map(({ method, max_age }) => ({ method, maxAgeSeconds: max_age })),
  };
}

/** Returns a session as the vectors have it. */
function asVector(session: Session): unknown {
  const seconds = (at: Date): number => at.getTime() / 1000;
  const verified = session.amr.map((method) => [method, session.verifiedAt(method)] as const);
  const known = verified.flatMap(([method, at]) => (at ? [[method, seconds(at)] as const] : []));
  return {
    session_id: session.id,
    subject: session.subject,
    tenant: session.tenant,
    client_id: session.clientId,
    audience: session.audience,
    scopes: session.scopes,
    issued_at: session.iat,
    expires_at: session.exp,
    authenticated_at: session.authTime,
    acr: session.acr,
    amr: session.amr,
    amr_verified_at: Object.fromEntries(known),
    claims: session.claims(),
  };
}

/** A watcher that is handed the messages of a feed. */
class Site {
  readonly clock: SettableClock;
  readonly watching: Watching;
  readonly verifier: Verifier;
  state = new StreamState();

  constructor(wallMs: number) {
    this.clock = new SettableClock(wallMs);
    const local = new Local(this.clock, 1 << 20);
    this.watching = new Watching(local, QUIET);
    this.verifier = new Verifier('local', local, undefined);
  }

  receive(message: WatchResponse): void {
    this.watching.apply(this.state, message);
  }

  /** Returns the word for the answer to a question, and checks the session. */
  answer(token: string, question: Question): string {
    const answer = this.verifier.verifyLocally(token, demandsOf(question));
    switch (answer.status) {
      case 'active':
        if (question.session !== undefined) {
          assert.deepEqual(asVector(answer.session), question.session, question.name);
        }
        return 'ACTIVE';
      case 'inactive':
        return answer.reason;
      case 'unknown':
        assert.equal(answer.why, 'no_lease');
        return 'UNKNOWN';
    }
  }

  check(token: string, question: Question, name: string): void {
    // The second answer might come from the cache of verified tokens.
    for (const time of ['new', 'seen before']) {
      assert.equal(this.answer(token, question), question.answer, `${name}, ${time}`);
    }
  }

  carryOut(step: Step, tokens: Record<string, string>, name: string): void {
    const bytes = (text = ''): Buffer => Buffer.from(text, 'base64');
    const message = (): WatchResponse => fromBinary(WatchResponseSchema, bytes(step.message));
    switch (step.step) {
      case 'open':
        this.state = new StreamState();
        assert.deepEqual(Buffer.from(this.watching.cursor), bytes(step.cursor), name);
        break;
      case 'receive':
        assert.doesNotThrow(() => {
          this.receive(message());
        }, name);
        break;
      case 'refuse':
        assert.throws(() => {
          this.receive(message());
        }, name);
        break;
      case 'renew': {
        const { applied } = this.watching.renew(this.state);
        assert.deepEqual(Buffer.from(applied), bytes(step.applied), name);
        break;
      }
      case 'advance': {
        const wall = this.clock.now() + (step.wall_ms ?? 0);
        this.clock.advance(step.uptime_ms ?? 0);
        this.clock.jumpTo(wall);
        break;
      }
      case 'check': {
        const token = tokens[step.token];
        assert.ok(token !== undefined, name);
        this.check(token, step, name);
        break;
      }
      default:
        assert.fail(`${name}: the kind of the step is unknown`);
    }
  }
}

for (const name of ['eddsa', 'es256', 'rs256', 'demands']) {
  test(`the vectors of tokens-${name} hold`, () => {
    const file = read(`tokens-${name}`) as TokensFile;
    const site = new Site(file.at * 1000);
    const receive = (json: object): void => {
      site.receive(fromJson(WatchResponseSchema, json as never));
    };
    const span = (seconds: number): string => `${seconds.toFixed(0)}s`;
    receive({
      rules: {
        issuer: file.issuer,
        maxLifetime: span(file.max_lifetime),
        leeway: span(file.leeway),
        leaseMargin: span(1),
      },
    });
    receive({ keys: { jwks: JSON.stringify(file.jwks) } });
    receive({ cursor: 'AQ==', revocations: {} });
    site.watching.renew(site.state);
    receive({
      lease: {
        number: '1',
        validFor: span(2),
        expiredUpTo: '1970-01-01T00:00:00Z',
        now: new Date(file.at * 1000).toISOString(),
      },
    });
    assert.ok(file.vectors.length > 30, 'there are many vectors');
    for (const vector of file.vectors) site.check(vector.token, vector, vector.name);
  });
}

for (const name of ['rules', 'recorded']) {
  test(`the vectors of feeds-${name} hold`, () => {
    const { feeds } = read(`feeds-${name}`) as FeedsFile;
    assert.ok(feeds.length > 0);
    for (const feed of feeds) {
      const site = new Site(feed.wall_ms);
      for (const [number, step] of feed.steps.entries()) {
        site.carryOut(step, feed.tokens, `${feed.name}, step ${number.toFixed(0)}, ${step.step}`);
      }
    }
  });
}
