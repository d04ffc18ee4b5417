/**
 * Decodes base64url without padding (RFC 7515, section 2); `undefined` for any other text. It
 * refuses unused bits at the end that are not zero.
 */
export function decode(part: string): Buffer | undefined {
  const decoded = Buffer.from(part, 'base64url');
  // The decoder skips what it does not know. Each sequence of bytes has only one spelling.
  return decoded.toString('base64url') === part ? decoded : undefined;
}
