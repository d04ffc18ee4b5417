/* eslint-disable no-console -- This is what writes to the console. */
/** Takes what happens in the background. The console is one. No message holds a token. */
export interface Logger {
  /** Takes a problem that somebody must solve. */
  error(message: string): void;
  /** Takes a problem that may solve itself. */
  warn(message: string): void;
}

/** Writes to the standard error. */
export const CONSOLE: Logger = {
  error: (message) => {
    console.error(`countersign: ${message}`);
  },
  warn: (message) => {
    console.warn(`countersign: ${message}`);
  },
};
