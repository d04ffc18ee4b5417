import type { Duration, Timestamp } from '@bufbuild/protobuf/wkt';

import type { CutOff, Scope } from './core/cut-offs.js';
import { isScope } from './core/cut-offs.js';
import type { Index } from './core/index.js';
import { parseId } from './core/ids.js';
import { KeySet } from './core/keys.js';
import { readClocks, type Start } from './core/lease.js';
import { areLimitsValid, type Local, type LocalCopy, type Rules } from './core/local.js';
import { fromSeconds, plus } from './core/time.js';
import type {
  RevokedSessions,
  WatchKeys,
  WatchLease,
  WatchRenewal,
  WatchResponse,
  WatchRevocations,
  WatchRules,
} from './gen/countersign/v1/revocation_service_pb.js';
import type { Logger } from './logger.js';

/** The length of a lease before the first one has told it. */
export const USUAL_LEASE = 2000;
/** The most renewals that wait for an answer. */
export const MAX_ASKED = 64;
/** The number of renewals in the time of a lease. */
const RENEWALS = 4;
/** The least time after which a stream without a lease is given up. */
const LEAST_PATIENCE = 1000;
/**
 * The largest difference between the clocks of the service and of this machine under which a lease
 * is taken.
 */
const LARGEST_DIFFERENCE = 5000;
/** The least time between two purges, each of which makes parts of the index anew. */
const PURGE_INTERVAL = 10_000;

/** The end of a stream, because of what it has brought. */
export class StreamError extends Error {
  static readonly notUnderstood = (): StreamError =>
    new StreamError(
      'the service has sent a message that this version of the library does not understand',
    );
}

/** What a watcher knows of the present stream. */
export class StreamState {
  /** The number of the last renewal. */
  #number = 0;
  /** The clocks before the renewals without an answer were sent, by the numbers of these. */
  readonly #waiting = new Map<number, Start>();
  /**
   * True if rules, and keys, have arrived on this stream since the last reset. While there was no
   * stream, both may have changed, so the first lease must come after them.
   */
  hasRules = false;
  hasKeys = false;
  /** True if there was a lease on this stream. */
  hadLease = false;

  /** Numbers a renewal, and keeps its clocks. */
  add(start: Start): number {
    this.#number++;
    if (this.#waiting.size === MAX_ASKED) {
      for (const oldest of this.#waiting.keys()) {
        this.#waiting.delete(oldest);
        break;
      }
    }
    this.#waiting.set(this.#number, start);
    return this.#number;
  }

  /** Returns the clocks before this renewal was sent, and forgets it and those before. */
  answered(number: bigint): Start | undefined {
    const answered = Number(number);
    const start = this.#waiting.get(answered);
    if (start === undefined) return undefined;
    for (const earlier of this.#waiting.keys()) {
      if (earlier <= answered) this.#waiting.delete(earlier);
    }
    return start;
  }
}

/** Applies the messages of Watch to the copy in force, and makes the renewals. */
export class Watching {
  readonly #local: Local;
  readonly #logger: Logger;
  /** The copy in force. */
  #copy: LocalCopy;
  /** The cursor that was last applied; empty within a snapshot. */
  cursor: Uint8Array = new Uint8Array();
  /** The last lease of the copy in force. */
  #lease: { start: Start; validFor: number } | undefined;
  /** The length of the last lease, which sets the pace of renewals. */
  #usualLease = USUAL_LEASE;
  /** True if the last lease was not taken, because the clocks differ. */
  #isClockWrong = false;
  #purgedAt = -Infinity;

  constructor(local: Local, logger: Logger) {
    this.#local = local;
    this.#copy = local.copy;
    this.#logger = logger;
  }

  /** The time between two renewals. */
  get interval(): number {
    return this.#usualLease / RENEWALS;
  }

  /** The time after which a stream is given up that has brought no lease. */
  get patience(): number {
    return Math.max(this.#usualLease, LEAST_PATIENCE);
  }

  /**
   * Applies a message completely. Returns whether to renew the lease at once, because there is
   * something new to confirm. After a message that cannot be understood there is no lease.
   *
   * @throws {@link StreamError} if the stream must end
   */
  apply(state: StreamState, response: WatchResponse): boolean {
    try {
      this.#apply(state, response);
    } catch (error) {
      this.#endLease();
      throw error;
    }
    if (response.cursor.length === 0) return false;
    // The bytes may be a part of a larger buffer, which would be kept too.
    this.cursor = response.cursor.slice();
    return true;
  }

  /** Makes a renewal, which confirms the cursor. The clocks are read first. */
  renew(state: StreamState): Pick<WatchRenewal, 'number' | 'applied'> {
    const number = state.add(readClocks(this.#local.clock));
    return { number: BigInt(number), applied: this.cursor };
  }

  /** Forgets the cursor, because the service does not understand it. */
  forgetCursor(): void {
    this.cursor = new Uint8Array();
  }

  #apply(state: StreamState, { event }: WatchResponse): void {
    switch (event.case) {
      case 'reset':
        this.#reset(state);
        break;
      case 'rules':
        this.#takeRules(state, event.value);
        break;
      case 'keys':
        this.#takeKeys(state, event.value);
        break;
      case 'revocations':
        applyRevocations(this.#copy.index, event.value);
        break;
      case 'lease':
        this.#takeLease(state, event.value);
        break;
      default:
        throw StreamError.notUnderstood();
    }
  }

  #reset(state: StreamState): void {
    this.#copy = this.#local.reset();
    this.#local.resets++;
    this.forgetCursor();
    this.#lease = undefined;
    state.hasRules = state.hasKeys = false;
  }

  #takeRules(state: StreamState, message: WatchRules): void {
    const rules: Rules = {
      issuer: message.issuer,
      maxLifetime: span(message.maxLifetime),
      leeway: span(message.leeway),
      tenants: new Set(message.tenants),
      audiences: new Set(message.audiences),
      leaseMargin: span(message.leaseMargin),
    };
    if (!areLimitsValid(rules)) throw StreamError.notUnderstood();
    // This process has only the revocations of the tenants that it could accept before.
    const hasRevocations = this.cursor.length > 0;
    if (hasRevocations && !areEqual(rules.tenants, this.#copy.rules.tenants)) {
      throw new StreamError(
        'the tenants of this caller have changed, so the revocations must be received anew',
      );
    }
    this.#replace(this.#copy.keys, rules);
    state.hasRules = true;
  }

  #takeKeys(state: StreamState, message: WatchKeys): void {
    const keys = readKeys(message.jwks, message.revoked, this.#logger);
    if (keys === undefined) throw StreamError.notUnderstood();
    this.#replace(keys, this.#copy.rules);
    state.hasKeys = true;
  }

  /**
   * Replaces the copy. The lease that this process has is good for the new copy too, which knows
   * more. No later lease is good for the earlier copy.
   */
  #replace(keys: KeySet, rules: Rules): void {
    this.#copy = this.#local.replace(keys, rules, this.#lease);
  }

  #takeLease(state: StreamState, lease: WatchLease): void {
    const start = state.answered(lease.number);
    const isComplete = state.hasRules && state.hasKeys && this.cursor.length > 0;
    if (start === undefined || !isComplete) {
      throw new StreamError('the service has sent a lease that was not asked for, or too early');
    }
    const validFor = span(lease.validFor);
    this.#forgetExpired(instant(lease.expiredUpTo));
    const now = instant(lease.now);
    const { clock } = this.#local;
    const difference = clock.now() - now;
    const isClockWrong = !(Math.abs(difference) <= LARGEST_DIFFERENCE);
    if (isClockWrong && !this.#isClockWrong) {
      this.#logger.error(
        'the clock of this machine, or that of the service, is wrong by ' +
          `${difference.toFixed(0)} ms: no lease is taken`,
      );
    }
    this.#isClockWrong = isClockWrong;
    if (isClockWrong) return;
    this.#lease = { start, validFor };
    this.#local.lag = clock.uptime() - start.uptime;
    this.#usualLease = Math.min(Math.max(validFor, 200), 10 * USUAL_LEASE);
    state.hadLease = true;
    this.#local.take(start, validFor);
  }

  /** Drops revocations whose tokens have all expired. The instant is raised first. */
  #forgetExpired(expiredUpTo: number): void {
    const { index } = this.#copy;
    const uptime = this.#local.clock.uptime();
    if (!index.expire(expiredUpTo) || uptime - this.#purgedAt < PURGE_INTERVAL) return;
    this.#purgedAt = uptime;
    purgeInSteps(index.purge());
  }

  /** Ends the lease, because the service has said something that this process cannot follow. */
  #endLease(): void {
    this.#copy.lease.end();
    this.#lease = undefined;
    // The next stream begins with a snapshot.
    this.forgetCursor();
  }
}

/** Purges a large index without holding up other work. */
function purgeInSteps(steps: Iterator<void>): void {
  if (steps.next().done !== true) setImmediate(purgeInSteps, steps);
}

/** Reads a JWK set, and notes keys that cannot be used. */
export function readKeys(
  jwks: string,
  revoked: readonly string[],
  logger: Logger,
): KeySet | undefined {
  const keys = KeySet.read(jwks, revoked);
  if (keys !== undefined && keys.unusable > 0) {
    logger.warn(`${keys.unusable.toFixed(0)} public keys cannot be used: their tokens are refused`);
  }
  return keys;
}

function areEqual(one: ReadonlySet<string>, other: ReadonlySet<string>): boolean {
  return one.size === other.size && [...one].every((name) => other.has(name));
}

/**
 * Applies all revocations of a message. Anything that this version does not understand is an error,
 * because it might stop a token.
 */
function applyRevocations(index: Index, message: WatchRevocations): void {
  for (const { id, expiresAt } of message.ids) {
    if (id.length !== 16) throw StreamError.notUnderstood();
    const view = new DataView(id.buffer, id.byteOffset, id.byteLength);
    const words = [view.getUint32(0), view.getUint32(4), view.getUint32(8), view.getUint32(12)];
    index.revokeId(words, instant(expiresAt));
  }
  for (const sessions of message.sessions) revokeSessions(index, sessions);
}

function revokeSessions(index: Index, message: RevokedSessions): void {
  const { where, instant: at } = message;
  if (where.case === undefined || at.case === undefined) throw StreamError.notUnderstood();
  if (where.case === 'allTenants' && !where.value) throw StreamError.notUnderstood();
  const scope: Scope = {
    tenant: where.case === 'tenant' ? where.value : undefined,
    subject: message.subject,
    clientId: message.clientId,
  };
  const byAuthentication = at.case === 'authenticatedUpTo';
  const spared = message.sparedSessionId === '' ? undefined : parseId(message.sparedSessionId);
  const isSparedRead = message.sparedSessionId === '' || spared !== undefined;
  if (!isScope(scope, byAuthentication) || !isSparedRead) throw StreamError.notUnderstood();
  const cutOff: CutOff = {
    upTo: instant(at.value),
    spared,
    expiresAt: instant(message.expiresAt),
  };
  index.revokeSessions(scope, byAuthentication, cutOff);
}

/** Reads a span, which must not be missing or negative. */
export function span(message: Duration | undefined): number {
  const milliseconds = message && Number(message.seconds) * 1000 + message.nanos / 1e6;
  if (milliseconds === undefined || milliseconds < 0) throw StreamError.notUnderstood();
  return milliseconds;
}

/** Reads an instant, which must not be missing. Fractions of a microsecond are dropped. */
function instant(message: Timestamp | undefined): number {
  if (message === undefined) throw StreamError.notUnderstood();
  return plus(fromSeconds(Number(message.seconds)), Math.trunc(message.nanos / 1000) / 1000);
}
