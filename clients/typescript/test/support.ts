import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { type AddressInfo, createServer, type Server as TcpServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

import { create, type MessageInitShape, toBinary } from '@bufbuild/protobuf';
import { anyPack } from '@bufbuild/protobuf/wkt';
import * as grpc from '@grpc/grpc-js';

import { Client } from '../src/client.js';
import { KeyService } from '../src/gen/countersign/v1/key_service_pb.js';
import { RevocationService } from '../src/gen/countersign/v1/revocation_service_pb.js';
import {
  type CreateSessionRequestSchema,
  SessionService,
} from '../src/gen/countersign/v1/session_service_pb.js';
import {
  ErrorInfoSchema,
  RetryInfoSchema,
  StatusSchema,
} from '../src/gen/google/rpc/error_details_pb.js';
import type { Logger } from '../src/logger.js';
import type { ClientOptions } from '../src/options.js';

/** The folder of the package, and that of the repository. This file is in .cache/build/test. */
export const root = fileURLToPath(new URL('../../..', import.meta.url));
export const repository = fileURLToPath(new URL('../../../../..', import.meta.url));

export const ISSUER = 'https://auth.test';
export const AUDIENCE = 'https://orders.test';
/** A test that would otherwise hang fails after this time. */
export const HANGS = 60_000;

/** A logger that drops everything. */
export const QUIET: Logger = { error: () => undefined, warn: () => undefined };

/** Waits until a condition holds. */
export async function eventually(
  what: string,
  holds: () => boolean | Promise<boolean>,
): Promise<void> {
  const ends = performance.now() + HANGS;
  while (!(await holds())) {
    assert.ok(performance.now() < ends, `not within a minute: ${what}`);
    await sleep(2);
  }
}

/** Ends what a test has opened, the last first. */
export class Closing implements AsyncDisposable {
  readonly #closers: (() => unknown)[] = [];

  add<T extends { close(): unknown }>(opened: T): T {
    this.#closers.push(() => opened.close());
    return opened;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const close of this.#closers.reverse()) await close();
  }
}

/** Runs a test, and closes what it has opened. */
export function closing(run: (closing: Closing) => Promise<void>): () => Promise<void> {
  return async () => {
    const opened = new Closing();
    try {
      await run(opened);
    } finally {
      await opened[Symbol.asyncDispose]();
    }
  };
}

/** A process whose lines are read. It is killed when it is closed. */
export class Program {
  readonly process: ChildProcess;
  readonly lines: string[] = [];
  readonly #ended: Promise<unknown>;

  constructor(
    command: string,
    parameters: readonly string[],
    variables: Record<string, string> = {},
    read: 'stdout' | 'stderr' = 'stderr',
  ) {
    const kept = Object.entries(process.env).filter(([name]) => !name.startsWith('COUNTERSIGN'));
    this.process = spawn(command, parameters, {
      env: { ...Object.fromEntries(kept), ...variables },
      stdio: ['pipe', read === 'stdout' ? 'pipe' : 'ignore', read === 'stderr' ? 'pipe' : 'ignore'],
    });
    this.#ended = new Promise((resolve) => this.process.on('exit', resolve));
    const output = this.process[read];
    assert.ok(output);
    createInterface({ input: output }).on('line', (line) => this.lines.push(line));
  }

  get hasEnded(): boolean {
    return this.process.exitCode !== null || this.process.signalCode !== null;
  }

  /** Waits for a line that a function can read, and returns what it has read. */
  async find<T>(read: (line: string) => T | undefined): Promise<T> {
    let found: T | undefined;
    await eventually('a line of the program', () => {
      found = this.lines.map(read).find((it) => it !== undefined);
      assert.ok(found !== undefined || !this.hasEnded, `it has ended: ${this.lines.join('\n')}`);
      return found !== undefined;
    });
    assert.ok(found !== undefined);
    return found;
  }

  async ended(): Promise<number | null> {
    await this.#ended;
    return this.process.exitCode;
  }

  /** Suspends the process, or lets it go on. */
  signal(name: 'SIGSTOP' | 'SIGCONT'): void {
    this.process.kill(name);
  }

  async close(): Promise<void> {
    this.process.kill('SIGKILL');
    await this.#ended;
  }
}

/** Returns the path of the service. */
export function executable(): string {
  const path = process.env['COUNTERSIGN'];
  assert.ok(path, 'COUNTERSIGN must have the path of the service: cargo build makes it');
  return path;
}

/** Returns an address that is free. */
async function freeAddress(): Promise<string> {
  const listener = await listen();
  const { port } = listener.address() as AddressInfo;
  await new Promise((resolve) => listener.close(resolve));
  return `127.0.0.1:${port.toFixed(0)}`;
}

/** Accepts connections, and never answers. */
export async function listen(): Promise<TcpServer> {
  const listener = createServer();
  await new Promise<void>((resolve) => listener.listen(0, '127.0.0.1', resolve));
  return listener;
}

/** The folder of a service, which has the same address each time that it is started. */
export class Site {
  readonly folder = mkdtempSync(join(tmpdir(), 'countersign-'));

  private constructor(readonly address: string) {}

  static async create(closing: Closing, settings = ''): Promise<Site> {
    const site = closing.add(new Site(await freeAddress()));
    site.configure(settings);
    return site;
  }

  /** Writes the settings. */
  configure(settings: string, audience = AUDIENCE, listen = ''): void {
    const lines = [
      `issuer = '${ISSUER}'`,
      `data_dir = '${join(this.folder, 'data')}'`,
      listen,
      '[tokens]',
      `default_audience = '${audience}'`,
      settings,
    ];
    writeFileSync(join(this.folder, 'countersign.toml'), lines.join('\n'));
  }

  get url(): string {
    return `http://${this.address}`;
  }

  async start(closing: Closing): Promise<Program> {
    const config = join(this.folder, 'countersign.toml');
    const server = new Program(
      executable(),
      ['serve', '--listen', this.address, '--config', config],
      { COUNTERSIGN_HTTP_LISTEN: '127.0.0.1:0', COUNTERSIGN_SHUTDOWN__GRACE: '0s' },
    );
    closing.add(server);
    await server.find((line) => line.includes('"message":"serving"') || undefined);
    return server;
  }

  client(closing: Closing, options: Partial<ClientOptions> = {}): Client {
    const client = new Client({
      endpoints: this.url,
      deadlineMs: 10_000,
      logger: QUIET,
      ...options,
    });
    return closing.add(client);
  }

  close(): void {
    rmSync(this.folder, { recursive: true });
  }
}

/** Returns a request for a session with a scope and claims. */
export function request(subject: string): MessageInitShape<typeof CreateSessionRequestSchema> {
  return { subject, scopes: ['orders:read'], claims: { plan: 'gold', seats: 3 } };
}

/** Creates a session, and returns its access token. */
export async function signIn(client: Client, subject: string): Promise<string> {
  const { tokens } = await client.createSession(request(subject), { deadlineMs: 10_000 });
  assert.ok(tokens);
  return tokens.accessToken;
}

/** Revokes the session of a token. */
export async function revoke(client: Client, token: string): Promise<void> {
  await client.revoke({ target: { case: 'token', value: token } });
}

/** Returns an error as the service makes it. */
export function refusal(
  code: grpc.status,
  reason: string,
  retryMs?: number,
): Partial<grpc.StatusObject> {
  const message = 'refused by a test';
  const info = create(ErrorInfoSchema, { reason, domain: 'countersign' });
  const details = [anyPack(ErrorInfoSchema, info)];
  if (retryMs !== undefined) {
    const seconds = Math.floor(retryMs / 1000);
    const retryDelay = { seconds: BigInt(seconds), nanos: (retryMs - seconds * 1000) * 1e6 };
    details.push(anyPack(RetryInfoSchema, create(RetryInfoSchema, { retryDelay })));
  }
  const metadata = new grpc.Metadata();
  const status = toBinary(StatusSchema, create(StatusSchema, { code, message, details }));
  metadata.set('grpc-status-details-bin', Buffer.from(status));
  return { code, details: message, metadata };
}

/** A call that a fake replica has got. */
export interface Received {
  readonly path: string;
  readonly message: Buffer;
  readonly metadata: grpc.Metadata;
  /** The number of the call. */
  readonly number: number;
  /** Asks the service behind. */
  forward(): Promise<Buffer>;
}

type Stream = grpc.ServerDuplexStream<Buffer, Buffer>;

/** A server in front of a service, which may answer otherwise: with bytes, or with an error. */
export class Front {
  readonly calls: Received[] = [];
  readonly server = new grpc.Server();
  address = '';

  private constructor(
    readonly behind: grpc.Client | undefined,
    answer: (call: Received) => Promise<Uint8Array> | Uint8Array,
    watch: (stream: Stream) => void,
  ) {
    const identity = (bytes: Buffer): Buffer => bytes;
    const definition: Record<string, grpc.MethodDefinition<Buffer, Buffer>> = {};
    const implementation: grpc.UntypedServiceImplementation = {};
    for (const service of [SessionService, KeyService, RevocationService]) {
      for (const method of service.methods) {
        const path = `/${service.typeName}/${method.name}`;
        const isStream = method.methodKind === 'bidi_streaming';
        definition[method.localName] = {
          path,
          requestStream: isStream,
          responseStream: isStream,
          requestSerialize: identity,
          requestDeserialize: identity,
          responseSerialize: identity,
          responseDeserialize: identity,
        };
        implementation[method.localName] = isStream
          ? watch
          : (
              call: grpc.ServerUnaryCall<Buffer, Buffer>,
              callback: grpc.sendUnaryData<Buffer>,
            ): void => {
              const number = this.calls.length;
              const { request: message, metadata } = call;
              const forward = (): Promise<Buffer> => this.#forward(path, message);
              const received = { path, message, metadata, number, forward };
              this.calls.push(received);
              Promise.resolve()
                .then(() => answer(received))
                .then(
                  (bytes) => {
                    callback(null, Buffer.from(bytes));
                  },
                  (error: unknown) => {
                    callback(error as grpc.ServiceError);
                  },
                );
            };
      }
    }
    this.server.addService(definition, implementation);
  }

  static async start(
    closing: Closing,
    answer: (call: Received) => Promise<Uint8Array> | Uint8Array,
    options: { behind?: string; watch?: (stream: Stream) => void } = {},
  ): Promise<Front> {
    const { behind, watch } = options;
    const channel =
      behind === undefined
        ? undefined
        : closing.add(new grpc.Client(behind, grpc.credentials.createInsecure()));
    const unwatched = (stream: Stream): void => {
      stream.emit('error', refusal(grpc.status.UNAVAILABLE, 'NOT_CURRENT'));
    };
    const front = closing.add(new Front(channel, answer, watch ?? unwatched));
    const port = await new Promise<number>((resolve, reject) => {
      front.server.bindAsync(
        '127.0.0.1:0',
        grpc.ServerCredentials.createInsecure(),
        (error, bound) => {
          if (error === null) resolve(bound);
          else reject(error);
        },
      );
    });
    front.address = `127.0.0.1:${port.toFixed(0)}`;
    return front;
  }

  get url(): string {
    return `http://${this.address}`;
  }

  #forward(path: string, message: Buffer): Promise<Buffer> {
    const identity = (bytes: Buffer): Buffer => bytes;
    return new Promise((resolve, reject) => {
      assert.ok(this.behind);
      this.behind.makeUnaryRequest(
        path,
        identity,
        identity,
        message,
        { deadline: Date.now() + 20_000 },
        (error, answer) => {
          if (error === null && answer !== undefined) resolve(answer);
          else reject(error ?? new Error('no answer'));
        },
      );
    });
  }

  close(): void {
    this.server.forceShutdown();
  }
}

/** Throws an error as the service makes it. */
export function refuse(code: grpc.status, reason: string, retryMs?: number): never {
  // eslint-disable-next-line @typescript-eslint/only-throw-error -- This is what grpc-js takes.
  throw refusal(code, reason, retryMs);
}
