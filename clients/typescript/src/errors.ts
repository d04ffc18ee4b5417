import { fromBinary } from '@bufbuild/protobuf';
import { anyUnpack, durationMs } from '@bufbuild/protobuf/wkt';
import { type ServiceError, status as Code } from '@grpc/grpc-js';

import {
  BadRequestSchema,
  ErrorInfoSchema,
  RetryInfoSchema,
  StatusSchema,
} from './gen/google/rpc/error_details_pb.js';

/** The reasons that this version of the library knows. */
export const REASONS = [
  'INVALID_FIELD',
  'REQUEST_ID_REUSED',
  'CALLER_UNKNOWN',
  'CALLER_NOT_ALLOWED',
  'CALLER_OVER_LIMIT',
  'REFRESH_TOKEN_INVALID',
  'REFRESH_TOKEN_REUSED',
  'SESSION_REVOKED',
  'SESSION_EXPIRED_IDLE',
  'SESSION_EXPIRED_ABSOLUTE',
  'SESSION_QUOTA_EXCEEDED',
  'ETAG_MISMATCH',
  'SESSION_NOT_FOUND',
  'KEY_NOT_FOUND',
  'KEY_TOO_NEW',
  'TOO_MANY_KEYS',
  'BLACKLIST_FULL',
  'TOO_MANY_WATCHERS',
  'WATCHER_TOO_SLOW',
  'NOT_SENT',
  'OVERLOADED',
  'STORE_UNAVAILABLE',
  'NOT_CURRENT',
  'NO_ACTIVE_KEY',
  'AUDIT_TABLE_OFF',
  'INTERNAL',
  'MALFORMED_REQUEST',
  'UNIMPLEMENTED',
  'DEADLINE_EXCEEDED',
  'UNREACHABLE',
] as const;

/**
 * The reason of an error, as `ErrorInfo.reason` names it. A reason that this version of the library
 * does not know is a text too, which is empty if the service has named none.
 *
 * - `INVALID_FIELD`: a field of the request is not valid; {@link CountersignError.fields} names it.
 * - `REQUEST_ID_REUSED`: the request id belongs to another request, or to another caller.
 * - `CALLER_UNKNOWN`: the API key or the client certificate is missing or unknown.
 * - `CALLER_NOT_ALLOWED`: the caller lacks the role, or the tenant or audience is not one of its
 *   own.
 * - `CALLER_OVER_LIMIT`: the caller has too many calls under way, or began too many recently.
 * - `REFRESH_TOKEN_INVALID`: the refresh token is malformed, forged, or from another service.
 * - `REFRESH_TOKEN_REUSED`: the refresh token was exchanged before, so two parties have it. The
 *   session has ended.
 * - `SESSION_REVOKED`: the session was ended.
 * - `SESSION_EXPIRED_IDLE`: the session was not refreshed within its idle time-out.
 * - `SESSION_EXPIRED_ABSOLUTE`: the session has reached the end of its lifetime.
 * - `SESSION_QUOTA_EXCEEDED`: the subject has as many sessions as its policy allows.
 * - `ETAG_MISMATCH`: the session has changed since it was read.
 * - `SESSION_NOT_FOUND`, `KEY_NOT_FOUND`: there is no such session or key.
 * - `KEY_TOO_NEW`: the pending key was published so recently that verifiers may not know it.
 * - `TOO_MANY_KEYS`: there are too many keys.
 * - `BLACKLIST_FULL`: the blacklist is full.
 * - `TOO_MANY_WATCHERS`, `WATCHER_TOO_SLOW`, `NOT_SENT`: see the call Watch.
 * - `OVERLOADED`: the service is overloaded, and has done nothing.
 * - `STORE_UNAVAILABLE`: the database is not available. A write may or may not have taken effect.
 * - `NOT_CURRENT`: the replica starts, stops, or does not know the latest revocations.
 * - `NO_ACTIVE_KEY`: no key is active at the moment.
 * - `AUDIT_TABLE_OFF`: the service keeps no audit in its database.
 * - `INTERNAL`: a bug of the service, or damaged data. The service's log has the details.
 * - `MALFORMED_REQUEST`: the service could not read the request.
 * - `UNIMPLEMENTED`: the service does not have the call; it may be older than this library.
 * - `DEADLINE_EXCEEDED`: the deadline of the call has passed. A write may have taken effect.
 * - `UNREACHABLE`: no replica could be reached, or the connection was lost during the call.
 */
// The second type admits other texts, and keeps the known ones in the completion of editors.
export type Reason = (typeof REASONS)[number] | (string & Record<never, never>);

/** A field of a request that is not valid. */
export interface FieldViolation {
  /** The path of the field, such as `audience[3]`. */
  readonly field: string;
  /** The problem with it. */
  readonly description: string;
}

const REFUSED: ReadonlySet<Reason> = new Set<Reason>([
  'NOT_CURRENT',
  'NO_ACTIVE_KEY',
  'OVERLOADED',
  'CALLER_OVER_LIMIT',
]);

/** The begin of the message of a call that has not left this process. */
const NOT_CONNECTED = 'No connection established';

/** The error of a call. It holds no token. */
export class CountersignError extends Error {
  override readonly name = 'CountersignError';
  /** The code of gRPC. */
  readonly code: Code;
  /** The reason. */
  readonly reason: Reason;
  /** The message of the service, which is for people. */
  readonly details: string;
  /**
   * The time after which the call may be repeated (`RetryInfo`), in milliseconds. The library has
   * waited for it already as far as the deadline allowed.
   */
  readonly retryAfterMs: number | undefined;
  /** The fields that are not valid (`BadRequest`). */
  readonly fields: readonly FieldViolation[];
  /**
   * True if the call certainly had no effect, because it did not reach the service, or because the
   * service refused it before doing anything.
   */
  readonly isRefused: boolean;

  /** @internal */
  constructor(error: {
    code: Code;
    reason: Reason;
    details: string;
    retryAfterMs?: number | undefined;
    fields?: readonly FieldViolation[];
    isRefused?: boolean;
  }) {
    const { code, reason, details } = error;
    const name = Code[code];
    super(reason === '' ? `${name}: ${details}` : `${reason} (${name}): ${details}`);
    this.code = code;
    this.reason = reason;
    this.details = details;
    this.retryAfterMs = error.retryAfterMs;
    this.fields = error.fields ?? [];
    this.isRefused = error.isRefused ?? REFUSED.has(reason);
  }

  /** True if the call may succeed later, without a change of the request. */
  get isTemporary(): boolean {
    return this.code === Code.UNAVAILABLE || this.retryAfterMs !== undefined;
  }

  /**
   * Reads the error of a call.
   *
   * @internal
   */
  static of(error: ServiceError): CountersignError {
    const { code, details } = error;
    const { reason, retryAfterMs, fields } = readDetails(error);
    if (reason !== undefined) {
      return new CountersignError({ code, reason, details, retryAfterMs, fields });
    }
    if (code === Code.UNAVAILABLE) {
      const isRefused = details.startsWith(NOT_CONNECTED);
      return new CountersignError({
        code,
        reason: 'UNREACHABLE',
        details,
        retryAfterMs,
        isRefused,
      });
    }
    const other = code === Code.DEADLINE_EXCEEDED ? 'DEADLINE_EXCEEDED' : '';
    return new CountersignError({ code, reason: other, details, retryAfterMs, fields });
  }

  /**
   * Creates the error of a call whose deadline has passed.
   *
   * @internal
   */
  static deadlineExceeded(): CountersignError {
    return new CountersignError({
      code: Code.DEADLINE_EXCEEDED,
      reason: 'DEADLINE_EXCEEDED',
      details: 'no replica has answered within the deadline',
    });
  }

  /**
   * Creates the error of a call that found no connection.
   *
   * @internal
   */
  static unreachable(details: string): CountersignError {
    const code = Code.UNAVAILABLE;
    return new CountersignError({ code, reason: 'UNREACHABLE', details, isRefused: true });
  }
}

interface Details {
  reason: string | undefined;
  retryAfterMs: number | undefined;
  fields: FieldViolation[];
}

/** Reads the details of google.rpc. */
function readDetails(error: ServiceError): Details {
  const read: Details = { reason: undefined, retryAfterMs: undefined, fields: [] };
  // Other libraries may throw errors without metadata.
  const [bytes] = (error.metadata as ServiceError['metadata'] | undefined)?.get(
    'grpc-status-details-bin',
  ) ?? [undefined];
  if (!Buffer.isBuffer(bytes)) return read;
  try {
    for (const detail of fromBinary(StatusSchema, bytes).details) {
      read.reason ??= anyUnpack(detail, ErrorInfoSchema)?.reason;
      const retry = anyUnpack(detail, RetryInfoSchema)?.retryDelay;
      if (retry !== undefined) read.retryAfterMs = Math.max(0, durationMs(retry));
      const violations = anyUnpack(detail, BadRequestSchema)?.fieldViolations ?? [];
      for (const { field, description } of violations) read.fields.push({ field, description });
    }
  } catch {
    // The details are not those of google.rpc. The code is good nevertheless.
  }
  return read;
}
