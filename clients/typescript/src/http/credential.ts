// Finds the token of a request: in `Authorization: Bearer` (RFC 6750), or in a cookie.

/** The token of a request, which may be empty or malformed, or the reason why there is none. */
export type Credential =
  | { readonly token: string }
  /** It has no token. There may be credentials of another scheme. */
  | 'none'
  /**
   * It has more than one token, or a second `Authorization` header. The application might use
   * another token than the one that is checked.
   */
  | 'several'
  /** It has several cookies of the same name with different values. */
  | 'conflicting_cookies';

const TOKEN68 = /^ +([A-Za-z0-9._~+/-]+=*)$/;
// White space of ASCII. `trim` would also remove other characters.
const AROUND = /^[ \t\n\f\r]+|[ \t\n\f\r]+$/g;

function trim(text: string): string {
  return text.replace(AROUND, '');
}

/**
 * Reads the token in a value of `Authorization`; `undefined` for another scheme than `Bearer`.
 *
 * Spaces and one token must follow the scheme. If anything else follows it, the result is an empty
 * token, which is never valid: a text that can be read in two ways must not be accepted in either.
 */
function bearerToken(value: string): string | undefined {
  const trimmed = trim(value);
  const rest = trimmed.slice('bearer'.length);
  const isBearer =
    trimmed.slice(0, 'bearer'.length).toLowerCase() === 'bearer' && /^(?:[ \t\n\f\r]|$)/.test(rest);
  return isBearer ? (TOKEN68.exec(rest)?.[1] ?? '') : undefined;
}

/** Yields the values of the cookies of a name (RFC 6265, section 4.2.1). */
function* cookiesNamed(value: string, name: string): Generator<string> {
  for (const pair of value.split(';')) {
    const sign = pair.indexOf('=');
    if (sign < 0 || trim(pair.slice(0, sign)) !== name) continue;
    const content = trim(pair.slice(sign + 1));
    const isQuoted = content.length > 1 && content.startsWith('"') && content.endsWith('"');
    const unquoted = isQuoted ? content.slice(1, -1) : content;
    // Applications clear a cookie by setting an empty value.
    if (unquoted !== '') yield unquoted;
  }
}

/**
 * Finds the token among the values of the headers `Authorization` and `Cookie`, whose characters
 * stand for bytes, as those of Node.js do. `cookie` is the name of the cookie that holds the token.
 *
 * A header with another scheme than `Bearer` is ignored, because it is meant for the application.
 */
export function findCredential(
  authorization: readonly string[],
  cookies: readonly string[],
  cookie: string | undefined,
): Credential {
  const [first] = authorization;
  const inHeader = first === undefined ? undefined : bearerToken(first);
  let inCookie: string | undefined;
  if (cookie !== undefined) {
    const name = Buffer.from(cookie).toString('latin1');
    const named = cookies.flatMap((value) => [...cookiesNamed(value, name)]);
    // The application may use any of the cookies of this name, so all must be equal.
    if (new Set(named).size > 1) return 'conflicting_cookies';
    [inCookie] = named;
  }
  const isDifferent = inHeader !== undefined && inCookie !== undefined && inHeader !== inCookie;
  if (authorization.length > 1 || isDifferent) return 'several';
  const token = inHeader ?? inCookie;
  return token === undefined ? 'none' : { token };
}
