import type { MessageInitShape } from '@bufbuild/protobuf';

import type { Claims } from './core/claims.js';
import type { InactiveReason } from './core/reasons.js';
import { since } from './core/time.js';
import {
  type ValidateRequestSchema,
  ValidateView,
} from './gen/countersign/v1/session_service_pb.js';

/** A demand for an authentication method. */
export interface Factor {
  /** The method that the user must have used (`amr`, RFC 8176). */
  readonly method: string;
  /** The time within which the method must have been verified, in seconds. */
  readonly maxAgeSeconds?: number | undefined;
}

/**
 * The demands that a route makes on the session of a request. Without any, every live session
 * passes.
 *
 * ```ts
 * const demands: Demands = {
 *   audience: 'https://orders.example',
 *   scopes: ['orders:write'],
 *   maxAuthenticationAgeSeconds: 300,
 *   factors: ['hwk'],
 * };
 * ```
 */
export interface Demands {
  /** The audience that the token must be meant for (`aud`). A service should demand its own. */
  readonly audience?: string | undefined;
  /** The scopes that the token must carry. */
  readonly scopes?: readonly string[] | undefined;
  /**
   * The authentication context classes (`acr`) of which the session must have one. A session that
   * lacks them is asked to step up (RFC 9470).
   */
  readonly acrValues?: readonly string[] | undefined;
  /**
   * The time within which the user must have authenticated, in seconds. Otherwise the session is
   * asked to step up (RFC 9470).
   */
  readonly maxAuthenticationAgeSeconds?: number | undefined;
  /** The authentication methods that the user must have used, perhaps within some time. */
  readonly factors?: readonly (string | Factor)[] | undefined;
}

/** Demands that were checked, with all times in seconds. */
export interface CheckedDemands {
  readonly audience: string;
  readonly scopes: readonly string[];
  readonly acrValues: readonly string[];
  readonly maxAuthenticationAge: number | undefined;
  readonly factors: readonly CheckedFactor[];
}

/** A demand for an authentication method that was checked. */
export interface CheckedFactor {
  readonly method: string;
  readonly maxAge: number | undefined;
}

const MEMBERS: ReadonlySet<string> = new Set<keyof Demands>([
  'audience',
  'scopes',
  'acrValues',
  'maxAuthenticationAgeSeconds',
  'factors',
]);

const NOTHING: CheckedDemands = {
  audience: '',
  scopes: [],
  acrValues: [],
  maxAuthenticationAge: undefined,
  factors: [],
};

/**
 * Checks demands. A misspelled demand must not be no demand, and types are not there at run time.
 *
 * @throws TypeError for demands that are not valid
 */
export function checkDemands(demands: Demands | undefined): CheckedDemands {
  if (demands === undefined) return NOTHING;
  for (const name in demands) {
    if (!MEMBERS.has(name)) throw new TypeError(`there is no demand ${JSON.stringify(name)}`);
  }
  return {
    audience: text('audience', demands.audience ?? ''),
    scopes: texts('scopes', demands.scopes),
    acrValues: texts('acrValues', demands.acrValues),
    maxAuthenticationAge: age('maxAuthenticationAgeSeconds', demands.maxAuthenticationAgeSeconds),
    factors: list('factors', demands.factors).map((factor) => {
      if (typeof factor === 'string') return { method: factor, maxAge: undefined };
      const { method, maxAgeSeconds } = factor;
      return { method: text('method', method), maxAge: age('maxAgeSeconds', maxAgeSeconds) };
    }),
  };
}

function text(name: string, value: unknown): string {
  if (typeof value !== 'string') throw new TypeError(`the demand ${name} must be a text`);
  return value;
}

function list<T>(name: string, values: readonly T[] | undefined): readonly T[] {
  if (values === undefined) return [];
  if (!(Array.isArray as (value: unknown) => boolean)(values))
    throw new TypeError(`the demand ${name} must be a list`);
  return values;
}

function texts(name: string, values: readonly string[] | undefined): readonly string[] {
  const read = list(name, values);
  for (const value of read) text(name, value);
  return read;
}

function age(name: string, value: unknown): number | undefined {
  if (value === undefined) return undefined;
  if (typeof value !== 'number' || !Number.isFinite(value) || value < 0) {
    throw new TypeError(`the demand ${name} must be a number of seconds`);
  }
  return value;
}

/** Returns the shortest of the demanded times since an authentication, in seconds. */
export function shortestAge(demands: CheckedDemands): number | undefined {
  const ages = [demands.maxAuthenticationAge, ...demands.factors.map((factor) => factor.maxAge)];
  const set = ages.filter((value) => value !== undefined);
  return set.length === 0 ? undefined : Math.min(...set);
}

/** Returns which demand the claims of a token do not meet, if there is one. */
export function unmetDemand(
  demands: CheckedDemands,
  claims: Claims,
  now: number,
): InactiveReason | undefined {
  const isWithin = (at: number, seconds: number | undefined): boolean =>
    seconds === undefined || since(now, at) <= seconds * 1000;

  if (demands.audience !== '' && !claims.audience.includes(demands.audience)) {
    return 'WRONG_AUDIENCE';
  }
  for (const scope of demands.scopes) {
    if (!claims.scopes.includes(scope)) return 'INSUFFICIENT_SCOPE';
  }
  if (demands.acrValues.length > 0 && !demands.acrValues.includes(claims.acr)) {
    return 'STEP_UP_REQUIRED';
  }
  if (!isWithin(claims.authenticatedAt, demands.maxAuthenticationAge)) return 'STEP_UP_REQUIRED';
  for (const { method, maxAge } of demands.factors) {
    if (!claims.amr.includes(method)) return 'STEP_UP_REQUIRED';
    if (maxAge === undefined) continue;
    // A method without a time is never recent.
    const at = claims.amrVerifiedAt.get(method);
    if (at === undefined || !isWithin(at, maxAge)) return 'STEP_UP_REQUIRED';
  }
  return undefined;
}

/** Asks the service the same. */
export function validateRequest(
  demands: CheckedDemands,
  accessToken: string,
): MessageInitShape<typeof ValidateRequestSchema> {
  return {
    accessToken,
    audience: demands.audience,
    scopes: [...demands.scopes],
    acrValues: [...demands.acrValues],
    ...withDuration('maxAuthenticationAge', demands.maxAuthenticationAge),
    factors: demands.factors.map(({ method, maxAge }) => ({
      method,
      ...withDuration('maxAge', maxAge),
    })),
    view: ValidateView.FULL,
  };
}

/** The longest span of google.protobuf.Duration, in seconds. */
const LONGEST = 315_576_000_000;

function withDuration<N extends string>(
  name: N,
  seconds: number | undefined,
): Partial<Record<N, { seconds: bigint; nanos: number }>> {
  if (seconds === undefined) return {};
  const span = Math.min(seconds, LONGEST);
  const whole = Math.floor(span);
  const duration = { seconds: BigInt(whole), nanos: Math.floor((span - whole) * 1e9) };
  return { [name]: duration } as Partial<Record<N, { seconds: bigint; nanos: number }>>;
}
