/**
 * Hooks for Fastify.
 *
 * @module
 */
import type { FastifyReply, FastifyRequest } from 'fastify';

import type { Demands } from './demands.js';
import { Guard, type ProtectOptions } from './http/guard.js';
import { getSession, requireSession, setSession } from './http/sessions.js';
import { Session } from './session.js';
import type { Verifier } from './verifier.js';

export type { ProtectOptions } from './http/guard.js';

/** A hook for `onRequest`. */
export type Hook = (request: FastifyRequest, reply: FastifyReply) => Promise<unknown>;

/**
 * Makes a hook that lets only requests pass whose access token is active and meets the demands. The
 * answers to others are those of {@link "express".protect}.
 *
 * ```ts
 * app.addHook('onRequest', protect(verifier, { audience: 'https://orders.example' }));
 * app.get('/me', (request) => sessionOf(request).subject);
 * ```
 *
 * For a single route, it is the option `onRequest`. It runs before the body is read.
 *
 * @throws TypeError for demands that are not valid
 */
export function protect(verifier: Verifier, demands?: Demands, options: ProtectOptions = {}): Hook {
  const guard = new Guard(verifier, demands, options);
  return async (request, reply) => {
    const outcome = await guard.check(request.raw);
    if (outcome === undefined) return undefined;
    if (outcome instanceof Session) {
      setSession(request, outcome);
      return undefined;
    }
    return reply.code(outcome.status).headers(outcome.headers).send(outcome.body);
  };
}

/** Returns the session of a protected request, or throws an error if the route is not protected. */
export function sessionOf(request: FastifyRequest): Session {
  return requireSession(request);
}

/** Returns the session of a request, if it has one. */
export function findSession(request: FastifyRequest): Session | undefined {
  return getSession(request);
}
