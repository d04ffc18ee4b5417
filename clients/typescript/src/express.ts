/**
 * Middleware for Express, Connect, and other frameworks whose middleware takes the request and the
 * response of `node:http`.
 *
 * @module
 */
import type { IncomingMessage, ServerResponse } from 'node:http';

import type { Demands } from './demands.js';
import { Guard, type ProtectOptions } from './http/guard.js';
import { getSession, requireSession, setSession } from './http/sessions.js';
import { Session } from './session.js';
import type { Verifier } from './verifier.js';

export type { ProtectOptions } from './http/guard.js';

/** Middleware of `node:http`, Connect and Express. */
export type Middleware = (
  request: IncomingMessage,
  response: ServerResponse,
  next: (error?: unknown) => void,
) => void;

/**
 * Makes middleware that lets only requests pass whose access token is active and meets the demands.
 * The token is in `Authorization: Bearer` or, with the option `cookie`, in a cookie. Other requests
 * are answered:
 *
 * | the request | the answer |
 * |---|---|
 * | has no token | 401, with a challenge that names the demanded scopes |
 * | has several tokens | 400, `invalid_request` (RFC 6750) |
 * | has an inactive token | 401, `invalid_token` |
 * | lacks a scope | 403, `insufficient_scope` |
 * | needs a stronger or more recent authentication | 401, `insufficient_user_authentication` (RFC 9470) |
 * | cannot be checked now | 503, with `Retry-After` |
 *
 * ```ts
 * app.post('/orders', protect(verifier, { scopes: ['orders:write'] }), (request, response) => {
 *   response.send(`ordered by ${sessionOf(request).subject}`);
 * });
 * ```
 *
 * @throws TypeError for demands that are not valid
 */
export function protect(
  verifier: Verifier,
  demands?: Demands,
  options: ProtectOptions = {},
): Middleware {
  const guard = new Guard(verifier, demands, options);
  return (request, response, next) => {
    guard.check(request).then((outcome) => {
      if (outcome === undefined) {
        next();
      } else if (outcome instanceof Session) {
        setSession(request, outcome);
        next();
      } else {
        response.writeHead(outcome.status, outcome.headers).end(outcome.body);
      }
    }, next);
  };
}

/** Returns the session of a protected request, or throws an error if the route is not protected. */
export function sessionOf(request: IncomingMessage): Session {
  return requireSession(request);
}

/** Returns the session of a request, if it has one. */
export function findSession(request: IncomingMessage): Session | undefined {
  return getSession(request);
}
