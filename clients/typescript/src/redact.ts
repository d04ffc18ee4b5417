import { inspect } from 'node:util';

import { isMessage } from '@bufbuild/protobuf';

/** The messages that hold tokens, or the claims or the metadata of a session. */
export const WITH_SECRETS: ReadonlySet<string> = new Set(
  [
    'Tokens',
    'CreateSessionRequest',
    'ImportedSession',
    'ReauthenticateRequest',
    'RefreshRequest',
    'RevokeRequest',
    'Session',
    'UpdateSessionRequest',
    'ValidateRequest',
    'ValidateResponse',
  ].map((name) => `countersign.v1.${name}`),
);

/** Makes sure that the console, and `util.inspect`, do not show the secrets in a message. */
export function redact<T>(message: T): T {
  if (Array.isArray(message)) message.forEach(redact);
  else if (isMessage(message)) {
    const { $typeName: name } = message;
    if (WITH_SECRETS.has(name)) {
      Object.defineProperty(message, inspect.custom, {
        value: () => `${name.slice('countersign.v1.'.length)} { [redacted] }`,
      });
    }
    for (const member of Object.values(message)) redact<unknown>(member);
  }
  return message;
}
