import { createdMillis, firstAuthentication, parseId } from './ids.js';
import { JsonError, JsonParser } from './json.js';
import { fromSeconds } from './time.js';

const AUTHENTICATION_ID = 'countersign_authentication_id';
const AMR_VERIFIED_AT = 'countersign_amr_verified_at';

/** The claims that a session shows, of a token or of an answer of Validate. */
export interface SessionClaims {
  readonly sessionId: string;
  readonly subject: string;
  readonly tenant: string;
  readonly clientId: string;
  readonly audience: readonly string[];
  readonly scopes: readonly string[];
  readonly issuedAt: number;
  readonly expiresAt: number;
  readonly authenticatedAt: number;
  readonly acr: string;
  readonly amr: readonly string[];
  readonly amrVerifiedAt: ReadonlyMap<string, number>;
  /**
   * The session's own claims as JSON. They are not kept decoded, because that may take many times
   * as much memory.
   */
  readonly custom: string;
}

/** The claims of an access token. All checks of a token share them, so nobody may change them. */
export interface Claims extends SessionClaims {
  readonly issuer: string;
  /** `issuedAt` if the token has no `nbf`. */
  readonly notBefore: number;
  readonly createdMillis: number;
  /** The identifiers of the session, the token and the authentication. */
  readonly session: readonly number[];
  readonly token: readonly number[];
  readonly authentication: readonly number[];
}

const NO_TIMES: ReadonlyMap<string, number> = new Map();
const NO_TEXTS: readonly string[] = Object.freeze([]);

/** The required claims. */
const REQUIRED = ['iss', 'sub', 'aud', 'client_id', 'iat', 'exp', 'jti', 'sid', 'auth_time'];

/**
 * Reads a payload. Every required claim must be present, every claim must have the right type, and
 * no name may occur twice.
 *
 * @throws {@link JsonError} for another payload
 */
export function parseClaims(payload: string): Claims {
  const parser = new JsonParser(payload);
  const seen = new Set<string>();
  const texts: Record<string, string> = {};
  const times: Record<string, number> = {};
  const ids: Record<string, number[]> = {};
  const custom: string[] = [];
  let audience = NO_TEXTS;
  let amr = NO_TEXTS;
  let amrVerifiedAt = NO_TIMES;
  parser.object((name) => {
    if (seen.has(name)) throw new JsonError();
    seen.add(name);
    switch (name) {
      case 'iss':
      case 'sub':
      case 'client_id':
      case 'tenant':
      case 'scope':
      case 'acr':
        texts[name] = parser.string();
        break;
      case 'iat':
      case 'exp':
      case 'nbf':
      case 'auth_time':
        times[name] = fromSeconds(parser.integer());
        break;
      case 'jti':
      case 'sid':
      case AUTHENTICATION_ID: {
        const text = parser.string();
        const id = parseId(text);
        if (id === undefined) throw new JsonError();
        if (name === 'sid') texts['sid'] = text;
        ids[name] = id;
        break;
      }
      case 'aud':
        audience = parser.isAtString() ? Object.freeze([parser.string()]) : readTexts(parser);
        if (audience.length === 0) throw new JsonError();
        break;
      case 'amr':
        amr = readTexts(parser);
        break;
      case AMR_VERIFIED_AT:
        amrVerifiedAt = readTimes(parser);
        break;
      default:
        custom.push(`${JSON.stringify(name)}:${parser.raw()}`);
    }
  });
  parser.end();
  for (const name of REQUIRED) if (!seen.has(name)) throw new JsonError();
  const session = ids['sid'] ?? [];
  const issuedAt = times['iat'] ?? 0;
  return {
    issuer: texts['iss'] ?? '',
    sessionId: texts['sid'] ?? '',
    session,
    createdMillis: createdMillis(session),
    token: ids['jti'] ?? [],
    authentication: ids[AUTHENTICATION_ID] ?? firstAuthentication(session),
    subject: texts['sub'] ?? '',
    tenant: texts['tenant'] ?? '',
    clientId: texts['client_id'] ?? '',
    audience,
    scopes: Object.freeze((texts['scope'] ?? '').split(' ').filter((scope) => scope !== '')),
    issuedAt,
    expiresAt: times['exp'] ?? 0,
    notBefore: times['nbf'] ?? issuedAt,
    authenticatedAt: times['auth_time'] ?? 0,
    acr: texts['acr'] ?? '',
    amr,
    amrVerifiedAt,
    custom: `{${custom.join(',')}}`,
  };
}

function readTexts(parser: JsonParser): readonly string[] {
  const texts: string[] = [];
  parser.array(() => texts.push(parser.string()));
  return Object.freeze(texts);
}

function readTimes(parser: JsonParser): ReadonlyMap<string, number> {
  const times = new Map<string, number>();
  parser.object((method) => {
    if (times.has(method)) throw new JsonError();
    times.set(method, fromSeconds(parser.integer()));
  });
  return times;
}
