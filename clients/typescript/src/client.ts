import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { inspect } from 'node:util';

import {
  clone,
  create,
  type DescMessage,
  type DescMethodUnary,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from '@bufbuild/protobuf';
import * as grpc from '@grpc/grpc-js';

import { connect, Endpoints, type Replica } from './endpoints.js';
import { CountersignError } from './errors.js';
import { AuditService } from './gen/countersign/v1/audit_service_pb.js';
import { KeyService } from './gen/countersign/v1/key_service_pb.js';
import {
  RevocationService,
  type WatchRequest,
  WatchRequestSchema,
  type WatchResponse,
  WatchResponseSchema,
} from './gen/countersign/v1/revocation_service_pb.js';
import { SessionService } from './gen/countersign/v1/session_service_pb.js';
import {
  callSettings,
  type CallSettings,
  type ClientOptions,
  milliseconds,
  replicas,
} from './options.js';
import { redact } from './redact.js';
import type { CallSpan } from './tracing.js';

/** The settings of one call. */
export interface CallOptions {
  /** Ends the call when it is aborted. The promise is rejected with the reason of the signal. */
  readonly signal?: AbortSignal | undefined;
  /** The longest time for this call, with its repetitions, in milliseconds. */
  readonly deadlineMs?: number | undefined;
}

/**
 * The conditions under which a call is repeated: `always` if it has the same effect however often
 * it is made; otherwise only if the service has certainly done nothing.
 */
type Repeat = 'always' | 'if_refused';
type DeadlineKind = 'usual' | 'revocation';

// The delays between the repetitions of a call, in milliseconds. The deadline ends them.
const LEAST_DELAY = 10;
const LONGEST_DELAY = 500;

/**
 * A client of the service.
 *
 * Every call has a deadline. A call that a replica cannot answer is repeated at another replica
 * until the deadline, unless it may have taken effect and must not take effect twice. A failed call
 * is rejected with a {@link CountersignError}.
 *
 * ```ts
 * const client = new Client({ endpoints: 'http://127.0.0.1:50051' });
 * const { tokens } = await client.createSession({ subject: 'alice' });
 * ```
 */
export class Client {
  readonly #endpoints: Endpoints;
  readonly #settings: CallSettings;
  #isClosed = false;

  /**
   * Creates a client, which connects when it is first used.
   *
   * @throws {@link BuildError} if the settings cannot be used
   */
  constructor(options: ClientOptions) {
    this.#settings = callSettings(options);
    this.#endpoints = new Endpoints(replicas(options, this.#settings.logger));
  }

  /**
   * Starts a session for a user whom the caller has authenticated.
   *
   * If the request has no request id, it gets one, so that a repetition by this method yields the
   * same session. To make a later call safe too, set a request id of your own.
   */
  createSession(
    request: MessageInitShape<typeof SessionService.method.createSession.input>,
    options?: CallOptions,
  ): Promise<MessageShape<typeof SessionService.method.createSession.output>> {
    const { createSession } = SessionService.method;
    const message = clone(createSession.input, create(createSession.input, request));
    message.requestId ||= randomUUID();
    return this.#call(createSession, message, 'always', 'usual', options);
  }

  /**
   * Exchanges a refresh token for the next pair of tokens.
   *
   * The call is repeated only if the service has certainly not exchanged the token. After another
   * error, exchange the same refresh token again: within the grace of its policy, it yields the
   * same tokens.
   */
  refresh(
    request: MessageInitShape<typeof SessionService.method.refresh.input>,
    options?: CallOptions,
  ): Promise<MessageShape<typeof SessionService.method.refresh.output>> {
    return this.#call(SessionService.method.refresh, request, 'if_refused', 'usual', options);
  }

  /**
   * Records that the user of a session has authenticated again. No earlier token of the session is
   * accepted any more. The request gets a request id as in {@link Client.createSession}.
   */
  reauthenticate(
    request: MessageInitShape<typeof SessionService.method.reauthenticate.input>,
    options?: CallOptions,
  ): Promise<MessageShape<typeof SessionService.method.reauthenticate.output>> {
    const { reauthenticate } = SessionService.method;
    const message = clone(reauthenticate.input, create(reauthenticate.input, request));
    message.requestId ||= randomUUID();
    return this.#call(reauthenticate, message, 'always', 'revocation', options);
  }

  /**
   * Changes data of a live session. With an etag, the call is not repeated once it may have taken
   * effect.
   */
  updateSession(
    request: MessageInitShape<typeof SessionService.method.updateSession.input>,
    options?: CallOptions,
  ): Promise<MessageShape<typeof SessionService.method.updateSession.output>> {
    const { updateSession } = SessionService.method;
    return this.#call(updateSession, request, 'if_refused', 'revocation', options);
  }

  /** Takes over live sessions of another system. */
  importSessions(
    request: MessageInitShape<typeof SessionService.method.importSessions.input>,
    options?: CallOptions,
  ): Promise<MessageShape<typeof SessionService.method.importSessions.output>> {
    const { importSessions } = SessionService.method;
    return this.#call(importSessions, request, 'always', 'revocation', options);
  }

  /**
   * Checks whether an access token is active. A {@link Verifier} has a simpler answer, and can do
   * it without a call.
   */
  validate(
    request: MessageInitShape<typeof SessionService.method.validate.input>,
    options?: CallOptions,
  ): Promise<MessageShape<typeof SessionService.method.validate.output>> {
    return this.#call(SessionService.method.validate, request, 'always', 'usual', options);
  }

  /** Validates up to 256 tokens in one call. */
  batchValidate(
    request: MessageInitShape<typeof SessionService.method.batchValidate.input>,
    options?: CallOptions,
  ): Promise<MessageShape<typeof SessionService.method.batchValidate.output>> {
    return this.#call(SessionService.method.batchValidate, request, 'always', 'usual', options);
  }

  /**
   * Ends sessions, or makes a single access token inactive. Once this has returned, no replica and
   * no watcher accepts a revoked token any more.
   */
  revoke(
    request: MessageInitShape<typeof SessionService.method.revoke.input>,
    options?: CallOptions,
  ): Promise<MessageShape<typeof SessionService.method.revoke.output>> {
    return this.#call(SessionService.method.revoke, request, 'always', 'revocation', options);
  }

  /** Lists revocations of many sessions. */
  listRevocations(
    request: MessageInitShape<typeof SessionService.method.listRevocations.input>,
    options?: CallOptions,
  ): Promise<MessageShape<typeof SessionService.method.listRevocations.output>> {
    return this.#call(SessionService.method.listRevocations, request, 'always', 'usual', options);
  }

  /** Returns one session. */
  getSession(
    request: MessageInitShape<typeof SessionService.method.getSession.input>,
    options?: CallOptions,
  ): Promise<MessageShape<typeof SessionService.method.getSession.output>> {
    return this.#call(SessionService.method.getSession, request, 'always', 'usual', options);
  }

  /** Lists sessions of a tenant. */
  listSessions(
    request: MessageInitShape<typeof SessionService.method.listSessions.input>,
    options?: CallOptions,
  ): Promise<MessageShape<typeof SessionService.method.listSessions.output>> {
    return this.#call(SessionService.method.listSessions, request, 'always', 'usual', options);
  }

  /** Counts sessions of a tenant. */
  countSessions(
    request: MessageInitShape<typeof SessionService.method.countSessions.input>,
    options?: CallOptions,
  ): Promise<MessageShape<typeof SessionService.method.countSessions.output>> {
    return this.#call(SessionService.method.countSessions, request, 'always', 'usual', options);
  }

  /** Returns the public keys that verify access tokens. */
  getJwks(
    request: MessageInitShape<typeof KeyService.method.getJwks.input> = {},
    options?: CallOptions,
  ): Promise<MessageShape<typeof KeyService.method.getJwks.output>> {
    return this.#call(KeyService.method.getJwks, request, 'always', 'usual', options);
  }

  /** Lists all keys. */
  listKeys(
    request: MessageInitShape<typeof KeyService.method.listKeys.input> = {},
    options?: CallOptions,
  ): Promise<MessageShape<typeof KeyService.method.listKeys.output>> {
    return this.#call(KeyService.method.listKeys, request, 'always', 'usual', options);
  }

  /** Makes the pending key active. */
  rotateKey(
    request: MessageInitShape<typeof KeyService.method.rotateKey.input>,
    options?: CallOptions,
  ): Promise<MessageShape<typeof KeyService.method.rotateKey.output>> {
    return this.#call(KeyService.method.rotateKey, request, 'if_refused', 'usual', options);
  }

  /**
   * Revokes a key. Once this has returned, no replica and no watcher accepts any token of that key.
   */
  revokeKey(
    request: MessageInitShape<typeof KeyService.method.revokeKey.input>,
    options?: CallOptions,
  ): Promise<MessageShape<typeof KeyService.method.revokeKey.output>> {
    return this.#call(KeyService.method.revokeKey, request, 'always', 'revocation', options);
  }

  /** Lists records of the audit. */
  listAudit(
    request: MessageInitShape<typeof AuditService.method.listAudit.input>,
    options?: CallOptions,
  ): Promise<MessageShape<typeof AuditService.method.listAudit.output>> {
    return this.#call(AuditService.method.listAudit, request, 'always', 'usual', options);
  }

  /** Closes the connections. Calls that are under way may fail. */
  close(): void {
    this.#isClosed = true;
    this.#endpoints.close();
  }

  /** Shows the number of replicas, and no key. */
  [inspect.custom](): string {
    return `Client { endpoints: ${this.#endpoints.size.toFixed(0)} }`;
  }

  /** @internal */
  get settings(): CallSettings {
    return this.#settings;
  }

  /** @internal */
  get endpoints(): Endpoints {
    return this.#endpoints;
  }

  /** Makes a call, and repeats it at other replicas until its deadline. */
  async #call<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageInitShape<I>,
    repeat: Repeat,
    kind: DeadlineKind,
    { signal, deadlineMs }: CallOptions = {},
  ): Promise<MessageShape<O>> {
    signal?.throwIfAborted();
    const settings = this.#settings;
    const usual = kind === 'usual' ? settings.deadlineMs : settings.revocationDeadlineMs;
    const span = deadlineMs === undefined ? usual : milliseconds('deadlineMs', deadlineMs);
    const ends = performance.now() + span;
    const message = encode(method.input, request);
    const tracing = settings.tracing?.begin(method.parent.typeName, method.name);
    let code = grpc.status.CANCELLED;
    try {
      const answer = await this.#repeat(method, message, repeat, { ends, signal, tracing });
      code = grpc.status.OK;
      return answer;
    } catch (error) {
      if (error instanceof CountersignError) ({ code } = error);
      throw error;
    } finally {
      tracing?.end(code);
    }
  }

  async #repeat<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    message: Buffer,
    repeat: Repeat,
    call: Call,
  ): Promise<MessageShape<O>> {
    let replica: Replica | undefined;
    for (let failed = 1; ; failed++) {
      replica = this.#endpoints.next(replica);
      try {
        const answer = await this.#attempt(replica, method, message, call);
        this.#endpoints.trust(replica);
        return answer;
      } catch (error) {
        if (!(error instanceof CountersignError)) throw error;
        this.#endpoints.note(replica, error);
        const delay = this.#delay(error, failed);
        const isTimeLeft = performance.now() + delay < call.ends;
        if (!mayRepeat(error, repeat) || !isTimeLeft) throw error;
        await pause(delay, call.signal);
      }
    }
  }

  /** Makes one attempt at a replica. */
  async #attempt<O extends DescMessage>(
    replica: Replica,
    method: DescMethodUnary<DescMessage, O>,
    message: Buffer,
    { ends, signal, tracing }: Call,
  ): Promise<MessageShape<O>> {
    if (this.#isClosed) throw new Error('the client is closed');
    const { channel } = replica;
    const left = ends - performance.now();
    const { connectTimeoutMs } = this.#settings;
    try {
      await abortable(connect(channel, Math.min(connectTimeoutMs, left)), signal);
    } catch (error) {
      const isLate = left < connectTimeoutMs && error instanceof CountersignError;
      throw isLate ? CountersignError.deadlineExceeded() : error;
    }
    signal?.throwIfAborted();
    return new Promise((resolve, reject) => {
      const call = channel.makeUnaryRequest<Buffer, MessageShape<O>>(
        pathOf(method),
        (bytes) => bytes,
        (bytes) => fromBinary(method.output, bytes),
        message,
        this.metadata(tracing),
        { deadline: Date.now() + ends - performance.now() },
        (error, answer) => {
          signal?.removeEventListener('abort', abort);
          if (signal?.aborted) reject(signal.reason as Error);
          else if (error !== null) reject(CountersignError.of(error));
          else if (answer !== undefined) resolve(redact(answer));
        },
      );
      const abort = (): void => {
        call.cancel();
      };
      signal?.addEventListener('abort', abort, { once: true });
    });
  }

  /** Returns the time to wait before a call is repeated that has failed this many times. */
  #delay(error: CountersignError, failed: number): number {
    // Another replica may answer at once. The wait that a replica asks for is for itself, except
    // that an overloaded service must get fewer calls.
    const isElsewhere = failed < this.#endpoints.size && error.reason !== 'OVERLOADED';
    const asked = isElsewhere ? 0 : (error.retryAfterMs ?? 0);
    return Math.max(asked, backoff(LEAST_DELAY, LONGEST_DELAY, failed - 1));
  }

  /**
   * Returns the credentials of this client, and the trace that a call belongs to.
   *
   * @internal
   */
  metadata(tracing?: CallSpan): grpc.Metadata {
    const metadata = new grpc.Metadata();
    const { authorization } = this.#settings;
    if (authorization !== undefined) metadata.set('authorization', authorization);
    tracing?.inject((name, value) => {
      try {
        metadata.set(name, value);
      } catch {
        // A propagator may have names that metadata cannot have.
      }
    });
    return metadata;
  }
}

interface Call {
  readonly ends: number;
  readonly signal: AbortSignal | undefined;
  readonly tracing: CallSpan | undefined;
}

/** A stream of Watch. */
export type WatchStream = grpc.ClientDuplexStream<WatchRequest, WatchResponse>;

/** Calls Watch on a channel. */
export function callWatch(client: Client, channel: grpc.Client): WatchStream {
  return channel.makeBidiStreamRequest<WatchRequest, WatchResponse>(
    pathOf(RevocationService.method.watch),
    (request) => Buffer.from(toBinary(WatchRequestSchema, request)),
    (bytes) => fromBinary(WatchResponseSchema, bytes),
    client.metadata(),
  );
}

function pathOf(method: { parent: { typeName: string }; name: string }): string {
  return `/${method.parent.typeName}/${method.name}`;
}

function encode<I extends DescMessage>(schema: I, request: MessageInitShape<I>): Buffer {
  try {
    return Buffer.from(toBinary(schema, create(schema, request)));
  } catch {
    // The cause may show the value of a field.
    throw new TypeError(`a field of ${schema.typeName} has a value of the wrong type`);
  }
}

function mayRepeat(error: CountersignError, repeat: Repeat): boolean {
  const isSafe = repeat === 'always' || error.isRefused;
  return error.isTemporary && isSafe && error.reason !== 'KEY_TOO_NEW';
}

/** Returns a random delay that grows with each failure. */
export function backoff(least: number, longest: number, failures: number): number {
  const delay = Math.min(longest, least * 2 ** Math.min(failures, 16));
  return delay * (1 + Math.random());
}

/** Waits, or is rejected with the reason of the signal. */
export async function pause(delay: number, signal: AbortSignal | undefined): Promise<void> {
  try {
    await sleep(delay, undefined, signal === undefined ? {} : { signal });
  } catch (error) {
    signal?.throwIfAborted();
    throw error;
  }
}

/** Waits for a promise, or is rejected with the reason of the signal. */
async function abortable<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return promise;
  signal.throwIfAborted();
  let abort: (() => void) | undefined;
  const aborted = new Promise<never>((_, reject) => {
    abort = () => {
      reject(signal.reason as Error);
    };
    signal.addEventListener('abort', abort, { once: true });
  });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    if (abort !== undefined) signal.removeEventListener('abort', abort);
  }
}
