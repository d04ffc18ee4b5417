import type { IncomingMessage } from 'node:http';

import { checkDemands, type CheckedDemands, type Demands } from '../demands.js';
import type { Session } from '../session.js';
import type { Verifier } from '../verifier.js';
import { challenge, type Denial, denialOf, describe, errorCode } from './challenge.js';
import { findCredential } from './credential.js';

/** The settings of middleware for HTTP. */
export interface ProtectOptions {
  /**
   * The name of the cookie from which the token is taken too. The cookie should be `HttpOnly` and
   * `SameSite`, because browsers send it with requests that other sites have caused.
   */
  readonly cookie?: string | undefined;
  /** The realm of challenges (RFC 9110, section 11.5), such as the URL of the service. */
  readonly realm?: string | undefined;
  /**
   * True if requests also pass that have no token; they have no session. A request with a bad token
   * is denied nevertheless.
   */
  readonly optional?: boolean | undefined;
}

/** The answer to a request that may not pass. */
export interface Refusal {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  /** The body. As a text, it would change the encoding of the headers. */
  readonly body: Buffer;
}

/** The settings of a protected route. */
export class Guard {
  readonly #verifier: Verifier;
  readonly #demands: CheckedDemands;
  readonly #given: Demands | undefined;
  readonly #options: ProtectOptions;

  constructor(verifier: Verifier, demands: Demands | undefined, options: ProtectOptions) {
    this.#verifier = verifier;
    this.#given = structuredClone(demands);
    this.#demands = checkDemands(this.#given);
    this.#options = options;
  }

  /**
   * Checks a request. Returns the answer if it may not pass, and otherwise its session, or
   * `undefined` if it has no token and needs none.
   */
  async check(request: IncomingMessage): Promise<Session | Refusal | undefined> {
    const { cookie, optional } = this.#options;
    const found = findCredential(
      headersNamed(request, 'authorization'),
      headersNamed(request, 'cookie'),
      cookie,
    );
    switch (found) {
      case 'none':
        return optional === true ? undefined : this.#deny('no_token');
      case 'several':
        return this.#deny('several_tokens');
      case 'conflicting_cookies':
        return this.#deny(found);
      default: {
        const answer = await this.#verifier.verify(found.token, this.#given);
        return answer.status === 'active' ? answer.session : this.#deny(denialOf(answer));
      }
    }
  }

  #deny(denial: Denial): Refusal {
    const headers: Record<string, string> = {
      'content-type': 'application/json',
      'cache-control': 'no-store',
    };
    if (denial === 'unknown') headers['retry-after'] = '1';
    else headers['www-authenticate'] = this.#challenge(denial);
    const description = describe(denial, this.#demands);
    const content = { error: errorCode(denial), error_description: description };
    const body = Buffer.from(JSON.stringify(content));
    return { status: statusOf(denial), headers, body };
  }

  #challenge(denial: Denial): string {
    const text = challenge(denial, this.#options.realm, this.#demands);
    // A demand may have characters that a header cannot have.
    if (!/^[\t\x20-\x7e\x80-\u{10ffff}]*$/u.test(text)) return 'Bearer';
    // Each character of a header stands for a byte.
    return Buffer.from(text).toString('latin1');
  }
}

/**
 * Returns all values of a header. `request.headers` would not tell of a second `Authorization`, and
 * frameworks may change it.
 */
function headersNamed(request: Pick<IncomingMessage, 'rawHeaders'>, name: string): string[] {
  const { rawHeaders } = request;
  return rawHeaders.filter(
    (_, index) => index % 2 === 1 && rawHeaders[index - 1]?.toLowerCase() === name,
  );
}

function statusOf(denial: Denial): number {
  switch (denial) {
    case 'several_tokens':
    case 'conflicting_cookies':
      return 400;
    case 'INSUFFICIENT_SCOPE':
      return 403;
    case 'unknown':
      return 503;
    default:
      return 401;
  }
}
