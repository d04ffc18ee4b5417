// The largest lengths of texts in revocations and rules, in bytes.
export const MAX_SUBJECT = 256;
export const MAX_TENANT = 128;
export const MAX_CLIENT_ID = 256;
export const MAX_AUDIENCE = 256;

/** Returns whether a text has no control characters, and is not too long. */
export function isText(text: string, limit: number): boolean {
  return Buffer.byteLength(text) <= limit && !/\p{Cc}/u.test(text);
}
