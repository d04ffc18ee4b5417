import type { Claims } from './claims.js';
import { createdMillis } from './ids.js';
import { isText, MAX_CLIENT_ID, MAX_SUBJECT, MAX_TENANT } from './text.js';

/** The sessions among which a revocation of many sessions chooses by their time. */
export interface Scope {
  /** The tenant; `undefined` for all tenants. */
  readonly tenant: string | undefined;
  /** The subject; empty for any. */
  readonly subject: string;
  /** The OAuth client; empty for any. */
  readonly clientId: string;
}

/** The instant up to which sessions are covered. */
export interface CutOff {
  readonly upTo: number;
  /** A session that is not covered. */
  readonly spared: readonly number[] | undefined;
  readonly expiresAt: number;
}

/** The kinds of cut-offs: the names in their keys, and the key of the only one for a token. */
const KINDS: readonly {
  readonly byAuthentication: boolean;
  readonly keyFor: (claims: Claims) => string;
}[] = [
  { byAuthentication: false, keyFor: (claims) => key(claims.tenant, claims.subject, '') },
  ...[false, true].flatMap((byAuthentication) => [
    { byAuthentication, keyFor: (claims: Claims) => key(claims.tenant, '', '') },
    { byAuthentication, keyFor: () => key(undefined, '', '') },
    { byAuthentication, keyFor: (claims: Claims) => key(claims.tenant, '', claims.clientId) },
    { byAuthentication, keyFor: (claims: Claims) => key(undefined, '', claims.clientId) },
  ]),
];

/** Texts in keys have no control characters, so no two scopes have the same key. */
function key(tenant: string | undefined, subject: string, clientId: string): string {
  return `${tenant === undefined ? '*' : '='}${tenant ?? ''}\0${subject}\0${clientId}`;
}

/** Returns whether a revocation may have this scope. */
export function isScope(scope: Scope, byAuthentication: boolean): boolean {
  const { tenant, subject, clientId } = scope;
  const areTexts =
    isText(tenant ?? '', MAX_TENANT) &&
    isText(subject, MAX_SUBJECT) &&
    isText(clientId, MAX_CLIENT_ID);
  const isOfSubject = subject !== '';
  return (
    areTexts && !(isOfSubject && (tenant === undefined || clientId !== '' || byAuthentication))
  );
}

/** Revocations of many sessions. */
export class CutOffs {
  /** The cut-offs by the time of creation, and by the time of authentication. */
  readonly #byCreation = new Map<string, CutOff>();
  readonly #byAuthentication = new Map<string, CutOff>();

  /** Adds a revocation. There is at most one for each scope. */
  apply(scope: Scope, byAuthentication: boolean, cutOff: CutOff): void {
    const cutOffs = byAuthentication ? this.#byAuthentication : this.#byCreation;
    const name = key(scope.tenant, scope.subject, scope.clientId);
    const existing = cutOffs.get(name);
    cutOffs.set(name, existing === undefined ? cutOff : union(existing, cutOff));
  }

  /** Returns whether a cut-off covers the session of a token. */
  cover(claims: Claims): boolean {
    if (this.size === 0) return false;
    return KINDS.some(({ byAuthentication, keyFor }) => {
      const cutOffs = byAuthentication ? this.#byAuthentication : this.#byCreation;
      const cutOff = cutOffs.size === 0 ? undefined : cutOffs.get(keyFor(claims));
      if (cutOff === undefined) return false;
      if (byAuthentication) return claims.authenticatedAt <= cutOff.upTo;
      return coversCreated(cutOff, claims.session);
    });
  }

  /** Drops the revocations whose tokens have all expired. */
  purge(upTo: number): void {
    for (const cutOffs of [this.#byCreation, this.#byAuthentication]) {
      for (const [name, cutOff] of cutOffs) if (cutOff.expiresAt <= upTo) cutOffs.delete(name);
    }
  }

  get size(): number {
    return this.#byCreation.size + this.#byAuthentication.size;
  }
}

function coversCreated(cutOff: CutOff, session: readonly number[]): boolean {
  if (createdMillis(session) > cutOff.upTo) return false;
  return !cutOff.spared?.every((word, index) => word === session[index]);
}

/** Returns the cut-off that covers exactly the sessions that at least one of the two covers. */
function union(one: CutOff, other: CutOff): CutOff {
  const [earlier, later] = one.upTo <= other.upTo ? [one, other] : [other, one];
  const isCovered = later.spared !== undefined && coversCreated(earlier, later.spared);
  return {
    upTo: later.upTo,
    spared: isCovered ? undefined : later.spared,
    expiresAt: Math.max(one.expiresAt, other.expiresAt),
  };
}
