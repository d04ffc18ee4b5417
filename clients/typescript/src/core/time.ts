// Instants and spans are numbers of milliseconds, the instants since 1970-01-01T00:00:00Z.
// Fractions are allowed. Instants saturate where those of the service do, so that both compare
// alike.

/** The latest instant. */
export const LATEST = 9_223_372_036_854_776;
/** The earliest instant. */
export const EARLIEST = -LATEST;

const MAX_SECONDS = 9_223_372_036_854;

/** Returns the instant this many seconds after the epoch. */
export function fromSeconds(seconds: number): number {
  if (seconds > MAX_SECONDS) return LATEST;
  if (seconds < -MAX_SECONDS) return EARLIEST;
  return seconds * 1000;
}

/** Returns the instant a span later. */
export function plus(at: number, span: number): number {
  return Math.max(EARLIEST, Math.min(LATEST, at + span));
}

/** Returns the time from an earlier instant to `at`, or zero if `at` is not later. */
export function since(at: number, earlier: number): number {
  return Math.max(at - earlier, 0);
}
