import { fileURLToPath } from 'node:url';

import type { Logger } from '../src/logger.js';

/** The folder of the repository. This file is compiled to .cache/build/test. */
export const repository = fileURLToPath(new URL('../../../../..', import.meta.url));

/** A logger that drops everything. */
export const QUIET: Logger = { error: () => undefined, warn: () => undefined };
