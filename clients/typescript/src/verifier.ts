import { inspect } from 'node:util';

import type { Answer } from './answer.js';
import type { CallOptions, Client } from './client.js';
import { type Clock, SystemClock } from './core/clock.js';
import { Local, type Rules } from './core/local.js';
import { INACTIVE_REASONS } from './core/reasons.js';
import { isTooLong } from './core/token.js';
import { type CheckedDemands, checkDemands, type Demands, validateRequest } from './demands.js';
import { CountersignError } from './errors.js';
import type { ValidateResponse } from './gen/countersign/v1/session_service_pb.js';
import { BuildError } from './options.js';
import { Session } from './session.js';
import { type Background, Fetcher, Watcher } from './watcher.js';

/**
 * The way in which a verifier gets its answers:
 *
 * - `remote`: it calls Validate for each token.
 * - `local`: it verifies tokens by its own copy of the keys and the revocations.
 * - `local_unwatched`: it verifies tokens by the public keys only, so it accepts revoked tokens
 *   until they expire.
 * - `testing`: it verifies the tokens of an authority of `countersign-client/testing`.
 */
export type Mode = 'remote' | 'local' | 'local_unwatched' | 'testing';

/**
 * The behaviour of a local verifier that has no lease: it is starting, or is cut off from the
 * service, or was suspended. `validate` calls Validate for each token, until there is a lease
 * again. `refuse` answers that it is unknown whether the token is active, without a call.
 */
export type OnLapse = 'validate' | 'refuse';

/** The memory for tokens whose signature was verified, in bytes. */
const CACHE_BYTES = 32 << 20;

/** The settings of {@link Verifier.local}. */
export interface LocalOptions {
  /** The behaviour without a lease: `validate` by default. */
  readonly onLapse?: OnLapse | undefined;
  /**
   * The memory for tokens whose signature was verified, in bytes: 32 MiB by default, which is room
   * for some 10,000 tokens.
   */
  readonly cacheBytes?: number | undefined;
  /** The clocks, which tests can replace. */
  readonly clock?: Clock | undefined;
}

/** The settings of {@link Verifier.localUnwatched}. */
export interface UnwatchedOptions {
  /**
   * The longest time between `iat` and `exp` of a token, in milliseconds: an hour by default. It
   * should be the setting `tokens.max_access_token_ttl` of the service.
   */
  readonly maxLifetimeMs?: number | undefined;
  /**
   * The time by which `iat` and `nbf` may be later than the clock, in milliseconds: 5000 by
   * default.
   */
  readonly leewayMs?: number | undefined;
  /**
   * The time for which keys are used that cannot be fetched again, in milliseconds: an hour by
   * default. After that nothing is known, and every answer is unknown.
   */
  readonly keysValidForMs?: number | undefined;
  /** The memory for tokens whose signature was verified, in bytes: 32 MiB by default. */
  readonly cacheBytes?: number | undefined;
  /** The clocks, which tests can replace. */
  readonly clock?: Clock | undefined;
}

/** The state of a verifier, for health checks and metrics. */
export interface Status {
  /**
   * The time for which the verifier can answer by its own copy, in milliseconds; zero if it cannot,
   * or if it has none.
   */
  readonly leaseMs: number;
  /** The number of revocations in the copy. */
  readonly revocations: number;
  /** The number of streams, or fetches of keys, that were begun. */
  readonly connections: number;
  /** The number of times that everything was received anew. */
  readonly resets: number;
  /** The time that the last renewal of the lease took, in milliseconds. */
  readonly lagMs: number;
}

const ON_LAPSE: readonly unknown[] = ['validate', 'refuse'] satisfies OnLapse[];

/**
 * Verifies access tokens.
 *
 * | mode | a check takes | it knows of revocations |
 * |---|---|---|
 * | {@link Verifier.remote} | a round trip | everything |
 * | {@link Verifier.local} | some microseconds | everything |
 * | {@link Verifier.localUnwatched} | some microseconds | nothing |
 */
export class Verifier {
  readonly #mode: Mode;
  readonly #local: Local | undefined;
  /** The client that answers where there is no lease. */
  readonly #fallback: Client | undefined;
  readonly #background: Background | undefined;
  readonly #counts = new Map<string, number>(
    ['active', ...INACTIVE_REASONS.map((reason) => reason.toLowerCase()), 'unknown'].map((name) => [
      name,
      0,
    ]),
  );
  #isClosed = false;

  /** @internal */
  constructor(
    mode: Mode,
    local: Local | undefined,
    fallback: Client | undefined,
    background?: Background,
  ) {
    this.#mode = mode;
    this.#local = local;
    this.#fallback = fallback;
    this.#background = background;
  }

  /**
   * Creates a verifier that calls Validate for each token. The caller needs the role `validator`.
   */
  static remote(client: Client): Verifier {
    return new Verifier('remote', undefined, client);
  }

  /**
   * Starts a verifier that watches the service, and then checks tokens by itself. It never accepts
   * a token that was revoked before it was asked. The caller needs the role `validator`.
   *
   * It connects in the background. Wait for {@link Verifier.ready} before the first request if it
   * must not cost a call. Call {@link Verifier.close} if it is needed no more: the process goes on
   * until then.
   */
  static local(client: Client, options: LocalOptions = {}): Verifier {
    const { onLapse = 'validate', clock = new SystemClock(), cacheBytes = CACHE_BYTES } = options;
    if (!ON_LAPSE.includes(onLapse)) throw new BuildError('onLapse must be validate or refuse');
    const local = new Local(clock, cacheBytes);
    const fallback = onLapse === 'validate' ? client : undefined;
    return new Verifier('local', local, fallback, new Watcher(client, local).start());
  }

  /**
   * Starts a verifier that knows only the public keys. **It accepts a revoked token, and a token of
   * a session that has ended, until the token expires.** Use it only where that is acceptable, with
   * access tokens that live for a short time.
   *
   * `issuer` is the `iss` of all tokens (the setting `issuer` of the service). The verifier fetches
   * the keys in the background. Wait for {@link Verifier.ready} before the first request, and call
   * {@link Verifier.close} if it is needed no more.
   */
  static localUnwatched(client: Client, issuer: string, options: UnwatchedOptions = {}): Verifier {
    const local = new Local(options.clock ?? new SystemClock(), options.cacheBytes ?? CACHE_BYTES);
    const rules: Rules = {
      issuer,
      maxLifetime: span('maxLifetimeMs', options.maxLifetimeMs ?? 3_600_000),
      leeway: span('leewayMs', options.leewayMs ?? 5000),
      tenants: new Set(),
      audiences: new Set(),
      // No clock can break the lease.
      leaseMargin: Infinity,
    };
    const keysValidFor = span('keysValidForMs', options.keysValidForMs ?? 3_600_000);
    const fetcher = new Fetcher(client, local, rules, keysValidFor).start();
    return new Verifier('local_unwatched', local, undefined, fetcher);
  }

  /**
   * Checks a token, and whether it meets the demands. In the modes that verify locally this calls
   * the service only if there is no lease.
   *
   * The promise is rejected only for demands that are not valid, and if the signal is aborted.
   */
  async verify(token: string, demands?: Demands, options?: CallOptions): Promise<Answer> {
    const checked = checkDemands(demands);
    const answer =
      this.#answerLocally(token, checked) ?? (await this.#fallBack(token, checked, options));
    return this.#count(answer);
  }

  /**
   * Checks a token without ever calling the service. Without a lease it is unknown whether the
   * token is active, and so it always is in the mode `remote`.
   */
  verifyLocally(token: string, demands?: Demands): Answer {
    const checked = checkDemands(demands);
    return this.#count(this.#answerLocally(token, checked) ?? NO_LEASE);
  }

  #answerLocally(token: string, demands: CheckedDemands): Answer | undefined {
    // Types are not there at run time.
    if (typeof token !== 'string') return MALFORMED;
    const outcome = this.#local?.answer(token, demands);
    if (outcome === undefined) return undefined;
    if (typeof outcome === 'string') return { status: 'inactive', reason: outcome };
    return { status: 'active', session: new Session(outcome) };
  }

  async #fallBack(
    token: string,
    demands: CheckedDemands,
    options: CallOptions | undefined,
  ): Promise<Answer> {
    const client = this.#fallback;
    if (client === undefined) return NO_LEASE;
    // The service would refuse such a request as malformed, which says nothing of the token.
    if (token === '' || isTooLong(token)) return MALFORMED;
    try {
      return answerOf(await client.validate(validateRequest(demands, token), options));
    } catch (error) {
      if (!(error instanceof CountersignError)) throw error;
      if (REFUSALS.has(error.reason)) {
        client.settings.logger.error(`the service refuses to validate tokens: ${error.message}`);
      }
      return { status: 'unknown', why: 'not_answered', error };
    }
  }

  #count(answer: Answer): Answer {
    const name = answer.status === 'inactive' ? answer.reason.toLowerCase() : answer.status;
    this.#counts.set(name, (this.#counts.get(name) ?? 0) + 1);
    return answer;
  }

  /**
   * Waits until the verifier can answer by its own copy, at once in the mode `remote`. Use it at
   * the start of a service, with a signal such as `AbortSignal.timeout(5000)`; the promise is
   * rejected with its reason.
   */
  async ready(signal?: AbortSignal): Promise<void> {
    await this.#local?.ready(signal);
  }

  /** Ends the work in the background, and the lease. The verifier then has no lease. */
  close(): void {
    this.#isClosed = true;
    this.#background?.close();
    if (this.#mode !== 'testing') this.#local?.copy.lease.end();
  }

  /** True if the verifier was closed. */
  get isClosed(): boolean {
    return this.#isClosed;
  }

  /** The mode. */
  get mode(): Mode {
    return this.#mode;
  }

  /** The state. */
  get status(): Status {
    const local = this.#local;
    return {
      leaseMs: local?.copy.lease.remaining() ?? 0,
      revocations: local?.copy.index.size ?? 0,
      connections: local?.connections ?? 0,
      resets: local?.resets ?? 0,
      lagMs: local?.lag ?? 0,
    };
  }

  /**
   * The number of checks so far with each result: `active`, the name of an {@link InactiveReason}
   * in lower case, or `unknown`.
   */
  get counts(): ReadonlyMap<string, number> {
    return this.#counts;
  }

  /** Shows the mode. */
  [inspect.custom](): string {
    return `Verifier { mode: '${this.#mode}' }`;
  }
}

const NO_LEASE: Answer = Object.freeze({ status: 'unknown', why: 'no_lease' });
const MALFORMED: Answer = Object.freeze({ status: 'inactive', reason: 'MALFORMED' });

const REFUSALS: ReadonlySet<string> = new Set([
  'INVALID_FIELD',
  'CALLER_UNKNOWN',
  'CALLER_NOT_ALLOWED',
]);

function span(name: string, value: number): number {
  // The comparison is false for what is no number.
  if (!(value >= 0)) throw new BuildError(`${name} must be a number of milliseconds`);
  return value;
}

/** Reads the answer of Validate. */
export function answerOf(response: ValidateResponse): Answer {
  if (response.active) {
    const session = Session.ofAnswer(response);
    return session === undefined ? NOT_UNDERSTOOD : { status: 'active', session };
  }
  // The numbers of the reasons are those of the protocol, which a test checks.
  const reason = INACTIVE_REASONS[response.inactiveReason - 1];
  return reason === undefined ? NOT_UNDERSTOOD : { status: 'inactive', reason };
}

const NOT_UNDERSTOOD: Answer = Object.freeze({ status: 'unknown', why: 'not_understood' });
