/**
 * The client of the Countersign session authority: typed calls, and the verification of access
 * tokens. Middleware is in `countersign-client/express`, `/fastify` and `/grpc`, an authority for
 * tests in `/testing`, metrics and spans in `/telemetry`, and the messages in `/proto`.
 *
 * @module
 */
export type { Active, Answer, Inactive, Unknown } from './answer.js';
export { type CallOptions, Client } from './client.js';
export type { Clock } from './core/clock.js';
export { INACTIVE_REASONS, type InactiveReason } from './core/reasons.js';
export type { Demands, Factor } from './demands.js';
export { CountersignError, type FieldViolation, type Reason, REASONS } from './errors.js';
export type { Logger } from './logger.js';
export { BuildError, type ClientOptions } from './options.js';
export { Session } from './session.js';
export type { CallSpan, CallTracing } from './tracing.js';
export {
  type LocalOptions,
  type Mode,
  type OnLapse,
  type Status,
  type UnwatchedOptions,
  Verifier,
} from './verifier.js';
