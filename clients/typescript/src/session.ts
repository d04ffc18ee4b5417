import { inspect } from 'node:util';

import type { JsonObject, JsonValue } from '@bufbuild/protobuf';
import type { Timestamp } from '@bufbuild/protobuf/wkt';

import type { SessionClaims } from './core/claims.js';
import { parseId } from './core/ids.js';
import { fromSeconds } from './core/time.js';
import type { ValidateResponse } from './gen/countersign/v1/session_service_pb.js';

/** The instant that is furthest from 1970 among those that `Date` can express, in milliseconds. */
const LATEST_DATE = 8.64e15;

/**
 * The session that an active token belongs to, with the claims of the token. Neither
 * `JSON.stringify` nor the console shows the claims.
 */
export class Session {
  readonly #claims: SessionClaims;

  /** @internal */
  constructor(claims: SessionClaims) {
    this.#claims = claims;
  }

  /**
   * Reads the answer of Validate for an active token; `undefined` if it is incomplete.
   *
   * @internal
   */
  static ofAnswer(answer: ValidateResponse): Session | undefined {
    const { issuedAt, expiresAt, authenticatedAt } = answer;
    const isComplete =
      parseId(answer.sessionId) !== undefined &&
      issuedAt !== undefined &&
      expiresAt !== undefined &&
      authenticatedAt !== undefined;
    if (!isComplete) return undefined;
    const times = Object.entries(answer.amrVerifiedAt);
    return new Session({
      sessionId: answer.sessionId,
      subject: answer.subject,
      tenant: answer.tenant,
      clientId: answer.clientId,
      audience: Object.freeze(answer.audience),
      scopes: Object.freeze(answer.scopes),
      issuedAt: seconds(issuedAt),
      expiresAt: seconds(expiresAt),
      authenticatedAt: seconds(authenticatedAt),
      acr: answer.acr,
      amr: Object.freeze(answer.amr),
      amrVerifiedAt: new Map(times.map(([method, at]) => [method, seconds(at)])),
      custom: JSON.stringify(answer.claims ?? {}),
    });
  }

  /** The identifier of the session (`sid`), a UUID. */
  get id(): string {
    return this.#claims.sessionId;
  }

  /** The user (`sub`). */
  get subject(): string {
    return this.#claims.subject;
  }

  /** The tenant; empty for the default tenant. */
  get tenant(): string {
    return this.#claims.tenant;
  }

  /** The OAuth client; may be empty. */
  get clientId(): string {
    return this.#claims.clientId;
  }

  /** The services that the token is meant for (`aud`). */
  get audience(): readonly string[] {
    return this.#claims.audience;
  }

  /** The scopes of the token. */
  get scopes(): readonly string[] {
    return this.#claims.scopes;
  }

  /** Returns whether the token carries a scope. */
  hasScope(scope: string): boolean {
    return this.#claims.scopes.includes(scope);
  }

  /** The time at which the token was issued, in whole seconds. */
  get issuedAt(): Date {
    return date(this.#claims.issuedAt);
  }

  /** The time at which the token expires, in whole seconds. */
  get expiresAt(): Date {
    return date(this.#claims.expiresAt);
  }

  /** The time at which the user authenticated (`auth_time`), in whole seconds. */
  get authenticatedAt(): Date {
    return date(this.#claims.authenticatedAt);
  }

  /** The same as `issuedAt`, in seconds since 1970, as the token has it. */
  get iat(): number {
    return Math.floor(this.#claims.issuedAt / 1000);
  }

  /** The same as `expiresAt`, in seconds since 1970, as the token has it. */
  get exp(): number {
    return Math.floor(this.#claims.expiresAt / 1000);
  }

  /** The same as `authenticatedAt`, in seconds since 1970, as the token has it. */
  get authTime(): number {
    return Math.floor(this.#claims.authenticatedAt / 1000);
  }

  /** The authentication context class; may be empty. */
  get acr(): string {
    return this.#claims.acr;
  }

  /** The authentication methods (RFC 8176). */
  get amr(): readonly string[] {
    return this.#claims.amr;
  }

  /** Returns the time at which an authentication method was verified, if it is known. */
  verifiedAt(method: string): Date | undefined {
    const at = this.#claims.amrVerifiedAt.get(method);
    return at === undefined ? undefined : date(at);
  }

  /** Returns a claim of the session's own. */
  claim(name: string): JsonValue | undefined {
    const claims = this.claims();
    return Object.hasOwn(claims, name) ? claims[name] : undefined;
  }

  /** Returns all claims of the session's own. They are decoded anew by each call. */
  claims(): JsonObject {
    return JSON.parse(this.#claims.custom) as JsonObject;
  }

  /** Shows the identifier of the session only. */
  [inspect.custom](): string {
    return `Session { id: '${this.id}' }`;
  }
}

function seconds(at: Timestamp): number {
  return fromSeconds(Number(at.seconds));
}

/** Returns an instant. One that `Date` cannot express becomes the last one that it can. */
function date(at: number): Date {
  return new Date(Math.max(-LATEST_DATE, Math.min(LATEST_DATE, at)));
}
