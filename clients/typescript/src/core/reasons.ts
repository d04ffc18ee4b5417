/** All reasons why a token may be inactive, in the order of their numbers in the protocol. */
export const INACTIVE_REASONS = [
  'MALFORMED',
  'BAD_SIGNATURE',
  'UNKNOWN_KEY',
  'WRONG_TYPE',
  'EXPIRED',
  'NOT_YET_VALID',
  'WRONG_ISSUER',
  'WRONG_AUDIENCE',
  'INSUFFICIENT_SCOPE',
  'STEP_UP_REQUIRED',
  'REVOKED',
  'FOREIGN_TENANT',
] as const;

/**
 * The reason why a token is inactive.
 *
 * - `MALFORMED`: it is not a JWT of the form that the service issues.
 * - `BAD_SIGNATURE`: the signature was not made by the key that the token names.
 * - `UNKNOWN_KEY`: the token names a key that is not known.
 * - `WRONG_TYPE`: it is a token, but not an access token.
 * - `EXPIRED`: it has expired.
 * - `NOT_YET_VALID`: it was issued in the future, beyond the tolerated difference of clocks.
 * - `WRONG_ISSUER`: it was issued by another issuer.
 * - `WRONG_AUDIENCE`: it is not meant for the demanded audience.
 * - `INSUFFICIENT_SCOPE`: a demanded scope is missing.
 * - `STEP_UP_REQUIRED`: the authentication is too weak or too old for the demands (RFC 9470).
 * - `REVOKED`: the session, the token, or the key that signed it was revoked.
 * - `FOREIGN_TENANT`: this caller may not see tokens of the tenant.
 */
export type InactiveReason = (typeof INACTIVE_REASONS)[number];
