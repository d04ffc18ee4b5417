import { isUtf8 } from 'node:buffer';

import { decode } from './base64url.js';
import { type Claims, parseClaims } from './claims.js';
import { JsonError, JsonParser } from './json.js';
import type { Key } from './keys.js';
import type { InactiveReason } from './reasons.js';

/** The only `typ` that is accepted (RFC 9068, section 2.1). */
export const TOKEN_TYPE = 'at+jwt';
/** The size of the longest token that is read, in bytes. */
export const MAX_TOKEN_BYTES = 8192;
/** The beginning of every refresh token. */
const REFRESH_TOKEN_PREFIX = 'cs_rt_';

/** Returns whether a token is longer than any that is read. */
export function isTooLong(token: string): boolean {
  // A character takes up to three bytes in UTF-8.
  if (token.length <= MAX_TOKEN_BYTES / 3) return false;
  return token.length > MAX_TOKEN_BYTES || Buffer.byteLength(token) > MAX_TOKEN_BYTES;
}

/** A token whose header was read, and whose signature was not checked. */
export interface Unverified {
  readonly keyId: string;
  readonly algorithm: string;
  readonly signed: string;
  readonly payload: string;
  readonly signature: string;
}

/** Reads the header of a token, whose size was checked before. */
export function parseToken(token: string): Unverified | InactiveReason {
  if (token.startsWith(REFRESH_TOKEN_PREFIX)) return 'WRONG_TYPE';
  const first = token.indexOf('.');
  const last = token.lastIndexOf('.');
  if (first === last || token.indexOf('.', first + 1) !== last) return 'MALFORMED';
  const header = readText(token.slice(0, first), parseHeader);
  if (header === undefined || header.hasExtension) return 'MALFORMED';
  if (header.type !== TOKEN_TYPE) return 'WRONG_TYPE';
  return {
    keyId: header.keyId,
    algorithm: header.algorithm,
    signed: token.slice(0, last),
    payload: token.slice(first + 1, last),
    signature: token.slice(last + 1),
  };
}

/** Checks the signature, and then reads the claims. */
export function verifyToken(token: Unverified, key: Key, issuer: string): Claims | InactiveReason {
  if (token.algorithm !== key.algorithm) return 'BAD_SIGNATURE';
  // A signature that is not base64url makes the token malformed. All other failures mean that the
  // key did not make the signature.
  const signature = decode(token.signature);
  if (signature === undefined) return 'MALFORMED';
  if (!key.verifies(token.signed, signature)) return 'BAD_SIGNATURE';
  const claims = readText(token.payload, parseClaims);
  if (claims === undefined) return 'MALFORMED';
  if (claims.issuer !== issuer) return 'WRONG_ISSUER';
  // `iat` and `exp` are equal if the token was issued in the last second of its session.
  if (claims.issuedAt > claims.expiresAt || claims.issuedAt < 0) return 'MALFORMED';
  return claims;
}

/** Decodes a part of a token, and reads the text; `undefined` if it is malformed. */
function readText<T>(part: string, read: (text: string) => T): T | undefined {
  const bytes = decode(part);
  if (bytes === undefined || !isUtf8(bytes)) return undefined;
  try {
    return read(bytes.toString());
  } catch (error) {
    if (error instanceof JsonError) return undefined;
    throw error;
  }
}

/** A JOSE header. Members that this library does not know are ignored. */
interface Header {
  readonly algorithm: string;
  readonly keyId: string;
  readonly type: string | undefined;
  /**
   * True if there is an extension that changes the meaning of the token (`crit` or `b64`). None is
   * supported, so such a token is refused (RFC 7515, section 4.1.11).
   */
  readonly hasExtension: boolean;
}

/** Reads a header, whose names must be unique (RFC 7515, section 4). */
function parseHeader(text: string): Header {
  const parser = new JsonParser(text);
  const names = new Set<string>();
  let algorithm = '';
  let keyId = '';
  let type: string | undefined;
  let hasExtension = false;
  parser.object((name) => {
    if (names.has(name)) throw new JsonError();
    names.add(name);
    switch (name) {
      case 'alg':
        algorithm = parser.string();
        break;
      case 'kid':
        keyId = parser.string();
        break;
      case 'typ':
        if (!parser.takeNull()) type = parser.string();
        break;
      case 'crit':
      case 'b64':
        hasExtension = true;
        parser.ignore();
        break;
      default:
        parser.ignore();
    }
  });
  parser.end();
  if (!names.has('alg') || !names.has('kid')) throw new JsonError();
  return { algorithm, keyId, type, hasExtension };
}
