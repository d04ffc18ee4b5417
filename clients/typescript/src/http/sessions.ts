import type { Session } from '../session.js';

// The symbol is that of the realm, because an application may load this package twice: by `import`
// and by `require`.
const SESSION = Symbol.for('countersign.session');

/** Keeps the session of a request. */
export function setSession(carrier: object, session: Session): void {
  Object.defineProperty(carrier, SESSION, { value: session, configurable: true });
}

/** Returns the session of a request that has passed the middleware, if it has one. */
export function getSession(carrier: object): Session | undefined {
  return (carrier as { [SESSION]?: Session })[SESSION];
}

/** Returns the session of a request, or throws an error if the route is not protected. */
export function requireSession(carrier: object): Session {
  const session = getSession(carrier);
  if (session === undefined) {
    throw new Error('the request has no session: protect the route without the option `optional`');
  }
  return session;
}
