import { randomBytes } from 'node:crypto';

/** The number of 32-bit words of an identifier. */
export const WORDS = 4;

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;

/**
 * Reads a UUID in the canonical lower-case form as four words. Other forms are refused, so that
 * each identifier has only one spelling.
 */
export function parseId(text: string): number[] | undefined {
  if (!UUID.test(text)) return undefined;
  return [
    parseInt(text.slice(0, 8), 16),
    parseInt(text.slice(9, 13) + text.slice(14, 18), 16),
    parseInt(text.slice(19, 23) + text.slice(24, 28), 16),
    parseInt(text.slice(28), 16),
  ];
}

/**
 * Returns the time at which a session was created, in milliseconds since 1970, which the first 48
 * bits of its identifier are.
 */
export function createdMillis(id: readonly number[]): number {
  return word(id, 0) * 0x1_0000 + (word(id, 1) >>> 16);
}

/**
 * Returns the identifier of the authentication with which a session was created: that of the
 * session as a UUID of version 8.
 */
export function firstAuthentication(session: readonly number[]): number[] {
  const versioned = ((word(session, 1) & 0xffff0fff) | 0x8000) >>> 0;
  return [word(session, 0), versioned, word(session, 2), word(session, 3)];
}

/** Returns a word of an identifier. */
export function word(id: readonly number[], index: number): number {
  return id[index] ?? 0;
}

/** Creates a UUID of version 7 (RFC 9562, section 5.7). */
export function newSessionId(at: number): string {
  const id = randomBytes(16);
  id.writeUIntBE(Math.max(0, Math.floor(at)), 0, 6);
  id.writeUInt8((id.readUInt8(6) & 0x0f) | 0x70, 6);
  id.writeUInt8((id.readUInt8(8) & 0x3f) | 0x80, 8);
  return id.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-');
}
