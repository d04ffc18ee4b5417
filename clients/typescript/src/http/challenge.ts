// The challenge to a client whose request may not pass, according to RFC 6750 (section 3) and RFC
// 9470 (section 3). It is that of the service's answers to gateways.

import type { Answer } from '../answer.js';
import type { InactiveReason } from '../core/reasons.js';
import { type CheckedDemands, shortestAge } from '../demands.js';

/**
 * The reason for which a request may not pass: that of an inactive token, or another one.
 *
 * - `no_token`: the request has no token.
 * - `several_tokens`: the request has several tokens.
 * - `conflicting_cookies`: the request has several cookies for the token, with different values.
 * - `unknown`: it is not known whether the token is active.
 */
export type Denial =
  InactiveReason | 'no_token' | 'several_tokens' | 'conflicting_cookies' | 'unknown';

/** Returns why the request with a token that has this answer may not pass. */
export function denialOf(answer: Exclude<Answer, { status: 'active' }>): Denial {
  return answer.status === 'inactive' ? answer.reason : 'unknown';
}

/** Returns the error code of RFC 6750 or RFC 9470. */
export function errorCode(denial: Denial): string {
  switch (denial) {
    case 'no_token':
      return 'unauthorized';
    case 'several_tokens':
    case 'conflicting_cookies':
      return 'invalid_request';
    case 'INSUFFICIENT_SCOPE':
      return 'insufficient_scope';
    case 'STEP_UP_REQUIRED':
      return 'insufficient_user_authentication';
    case 'unknown':
      return 'temporarily_unavailable';
    default:
      return 'invalid_token';
  }
}

/** Describes the problem for the developer of the client. */
export function describe(denial: Denial, demands: CheckedDemands): string {
  switch (denial) {
    case 'no_token':
      return 'an access token is needed';
    case 'several_tokens':
      return 'more than one access token was sent';
    case 'conflicting_cookies':
      return (
        'several cookies of the same name were sent with different values: clear the cookies of ' +
        'this site and its parent domains, and sign in again'
      );
    case 'INSUFFICIENT_SCOPE':
      return 'the access token lacks a scope';
    case 'STEP_UP_REQUIRED':
      return stepUp(demands);
    case 'EXPIRED':
      return 'the access token has expired';
    case 'NOT_YET_VALID':
      return 'the access token is not valid yet';
    case 'REVOKED':
      return 'the access token has been revoked';
    case 'WRONG_AUDIENCE':
    case 'FOREIGN_TENANT':
      return 'the access token is not meant for this resource';
    case 'unknown':
      return 'the access token cannot be checked at the moment: try again';
    default:
      return 'the access token is not valid';
  }
}

/**
 * Describes the authentication that a route demands. RFC 9470 has no parameter for methods, so the
 * text names them.
 */
function stepUp(demands: CheckedDemands): string {
  const methods = demands.factors.map(({ method, maxAge }) =>
    maxAge === undefined ? method : `${method} within ${wholeSeconds(maxAge)} seconds`,
  );
  const text = 'a stronger or more recent authentication is needed';
  return methods.length === 0 ? text : `${text}: the route demands ${methods.join(', ')}`;
}

function wholeSeconds(age: number): string {
  return Math.floor(age).toFixed(0);
}

/** Returns the demands that are not met, by the names of RFC 6750 and RFC 9470. */
export function unmet(denial: Denial, demands: CheckedDemands): [name: string, value: string][] {
  const found: [string, string][] = [];
  if (denial === 'INSUFFICIENT_SCOPE') {
    found.push(['scope', demands.scopes.join(' ')]);
  } else if (denial === 'STEP_UP_REQUIRED') {
    const age = shortestAge(demands);
    found.push(['acr_values', demands.acrValues.join(' ')]);
    found.push(['max_age', age === undefined ? '' : wholeSeconds(age)]);
  }
  return found.filter(([, value]) => value !== '');
}

/** Returns the value of `WWW-Authenticate`. */
export function challenge(
  denial: Denial,
  realm: string | undefined,
  demands: CheckedDemands,
): string {
  const parameters: [string, string][] = [];
  if (realm !== undefined) parameters.push(['realm', realm]);
  // A request without a token gets no error code (RFC 6750, section 3.1).
  if (denial !== 'no_token') {
    parameters.push(['error', errorCode(denial)]);
    parameters.push(['error_description', describe(denial, demands)]);
  }
  parameters.push(...unmet(denial === 'no_token' ? 'INSUFFICIENT_SCOPE' : denial, demands));
  if (parameters.length === 0) return 'Bearer';
  return `Bearer ${parameters.map(([name, value]) => `${name}="${quoted(value)}"`).join(', ')}`;
}

/** Escapes a text for a quoted string (RFC 9110, section 5.6.4). */
function quoted(text: string): string {
  return text.replace(/[\\"]/g, '\\$&');
}
