import type { InactiveReason } from './core/reasons.js';
import type { CountersignError } from './errors.js';
import type { Session } from './session.js';

/** The token is authentic, its session is live, and all demands are met. */
export interface Active {
  readonly status: 'active';
  /** The session. */
  readonly session: Session;
}

/** The token is not accepted. */
export interface Inactive {
  readonly status: 'inactive';
  /** The reason. */
  readonly reason: InactiveReason;
}

/**
 * It is not known whether the token is active, so the request must not pass. The client may try
 * again.
 */
export interface Unknown {
  readonly status: 'unknown';
  /**
   * The reason:
   *
   * - `no_lease`: this process has no lease: it is starting, or is cut off from the service, or was
   *   suspended.
   * - `not_answered`: the service did not answer the question; `error` says why.
   * - `not_understood`: the answer of the service cannot be understood; it may be newer than this
   *   library.
   */
  readonly why: 'no_lease' | 'not_answered' | 'not_understood';
  /** The error of the call of Validate. */
  readonly error?: CountersignError;
}

/**
 * The answer of a {@link Verifier}. Only `status === 'active'` lets a request pass. The answer
 * itself is an object, which is always true.
 */
export type Answer = Active | Inactive | Unknown;
