import { X509Certificate } from 'node:crypto';
import { createSecureContext } from 'node:tls';

import * as grpc from '@grpc/grpc-js';

import { Replica } from './endpoints.js';
import { CONSOLE, type Logger } from './logger.js';
import type { CallTracing } from './tracing.js';

/** The longest deadline, in milliseconds: a day. */
export const LONGEST_DEADLINE = 86_400_000;
/**
 * The largest answer that is read, in bytes. The service limits its answers itself
 * (`limits.max_answer_bytes`, 4 MiB by default).
 */
const MAX_ANSWER_BYTES = 64 << 20;

/** The usual longest time to connect to a replica, in milliseconds. */
const CONNECT_TIMEOUT = 500;

/** The settings of a client. */
export interface ClientOptions {
  /**
   * The URLs of the replicas, such as `https://sessions.example:50051`. Calls go to them in turn,
   * and a call that one of them cannot answer is repeated at another.
   */
  readonly endpoints: string | readonly string[];
  /**
   * The API key that is sent with each call. It is a secret, so the endpoints should begin with
   * `https://`.
   */
  readonly apiKey?: string | undefined;
  /**
   * The certificates of the only authorities that are trusted, in PEM. Without them those are
   * trusted that Node.js trusts.
   */
  readonly caCertificate?: string | Buffer | undefined;
  /** The client certificate by which the caller identifies, and its private key, in PEM. */
  readonly clientCertificate?:
    { readonly certificate: string | Buffer; readonly key: string | Buffer } | undefined;
  /** The name in the certificate of the service, if it is not the host of the endpoint. */
  readonly serverName?: string | undefined;
  /**
   * The longest time that a call may take, with its repetitions, in milliseconds: 1000 by default,
   * and at most a day.
   */
  readonly deadlineMs?: number | undefined;
  /**
   * The longest time for calls whose purpose is a revocation: `revoke`, `revokeKey`,
   * `reauthenticate`, `updateSession` and `importSessions`. It is 5000 ms by default, because such
   * a call waits for a replica or a watcher that has died, for up to 2.3 s.
   */
  readonly revocationDeadlineMs?: number | undefined;
  /**
   * The longest time that it may take to connect to a replica, before another one is tried, in
   * milliseconds: 500 by default.
   */
  readonly connectTimeoutMs?: number | undefined;
  /** Takes what happens in the background: the console by default. */
  readonly logger?: Logger | undefined;
  /** Makes spans of calls: `openTelemetry()` of `countersign-client/telemetry`. */
  readonly tracing?: CallTracing | undefined;
}

/** The client cannot be built from its settings. */
export class BuildError extends Error {
  override readonly name = 'BuildError';
}

/** The settings of calls. */
export interface CallSettings {
  readonly deadlineMs: number;
  readonly revocationDeadlineMs: number;
  readonly connectTimeoutMs: number;
  readonly authorization: string | undefined;
  readonly logger: Logger;
  readonly tracing: CallTracing | undefined;
}

/** Checks a span that a user has given. */
export function milliseconds(name: string, value: number): number {
  if (typeof value !== 'number' || !(value > 0)) {
    throw new BuildError(`${name} must be a number of milliseconds that is greater than 0`);
  }
  return Math.min(value, LONGEST_DEADLINE);
}

/** Reads the settings of calls. */
export function callSettings(options: ClientOptions): CallSettings {
  const { apiKey } = options;
  if (apiKey !== undefined && !/^[\x20-\x7e]+$/.test(apiKey)) {
    throw new BuildError('the API key is empty, or has characters that cannot be sent');
  }
  return {
    deadlineMs: milliseconds('deadlineMs', options.deadlineMs ?? 1000),
    revocationDeadlineMs: milliseconds(
      'revocationDeadlineMs',
      options.revocationDeadlineMs ?? 5000,
    ),
    connectTimeoutMs: milliseconds('connectTimeoutMs', options.connectTimeoutMs ?? CONNECT_TIMEOUT),
    authorization: apiKey === undefined ? undefined : `Bearer ${apiKey}`,
    logger: options.logger ?? CONSOLE,
    tracing: options.tracing,
  };
}

/** Reads the replicas. */
export function replicas(options: ClientOptions, logger: Logger): Replica[] {
  const urls = [options.endpoints].flat();
  if (urls.length === 0) {
    throw new BuildError('no endpoint is given: name at least one, such as http://127.0.0.1:50051');
  }
  return urls.map((url, number) => {
    const { host, hostname, isEncrypted } = readUrl(url);
    const hasCertificates =
      options.caCertificate !== undefined || options.clientCertificate !== undefined;
    if (hasCertificates && !isEncrypted) {
      throw new BuildError(
        `${url} is not encrypted, so the certificates would not be used: use https://`,
      );
    }
    if (options.apiKey !== undefined && !isEncrypted && !LOCAL.has(hostname)) {
      logger.warn(`the API key is sent to ${url} without encryption: use https://`);
    }
    const credentials = isEncrypted ? encrypted(options) : grpc.credentials.createInsecure();
    limitHandshake(credentials, options.connectTimeoutMs ?? CONNECT_TIMEOUT);
    return new Replica(number, host, credentials, channelOptions(options.serverName));
  });
}

const LOCAL: ReadonlySet<string> = new Set(['localhost', '127.0.0.1', '[::1]']);

function readUrl(text: string): { host: string; hostname: string; isEncrypted: boolean } {
  const wrong = (): BuildError =>
    new BuildError(
      `${JSON.stringify(text)} is not the URL of an endpoint, such as ` +
        'https://sessions.example:50051',
    );
  let url: URL;
  try {
    url = new URL(text);
  } catch {
    throw wrong();
  }
  const { protocol, hostname, pathname, search, hash, username, password } = url;
  const isEncrypted = protocol === 'https:';
  const isHttp = isEncrypted || protocol === 'http:';
  const isBare = pathname === '/' && `${search}${hash}${username}${password}` === '';
  if (!isHttp || hostname === '' || !isBare) throw wrong();
  const port = url.port === '' ? (isEncrypted ? '443' : '80') : url.port;
  return { host: `${hostname}:${port}`, hostname, isEncrypted };
}

function encrypted(options: ClientOptions): grpc.ChannelCredentials {
  const { caCertificate, clientCertificate } = options;
  const bytes = (pem: string | Buffer): Buffer => (Buffer.isBuffer(pem) ? pem : Buffer.from(pem));
  const certificates = caCertificate === undefined ? null : bytes(caCertificate);
  try {
    // grpc-js reads them later, and leaves out what it cannot read.
    if (certificates !== null) checkCertificates(certificates.toString('latin1'));
    const cert = clientCertificate && bytes(clientCertificate.certificate);
    const key = clientCertificate && bytes(clientCertificate.key);
    if (cert && key) createSecureContext({ cert, key });
    return grpc.credentials.createSsl(certificates, key ?? null, cert ?? null);
  } catch (error) {
    const problem = error instanceof Error ? error.message : 'they cannot be read';
    throw new BuildError(`the certificates cannot be used: ${problem}`);
  }
}

/**
 * Closes a connection whose peer says nothing for some time after it was accepted. grpc-js would
 * wait for ever.
 */
function limitHandshake(credentials: grpc.ChannelCredentials, timeout: number): void {
  const original = credentials._createSecureConnector.bind(credentials);
  credentials._createSecureConnector = (...parameters) => {
    const connector = original(...parameters);
    const secure = connector.connect.bind(connector);
    connector.connect = async (socket) => {
      let isSecure = false;
      const timer = setTimeout(() => {
        // A connection without TLS is secure at once.
        if (!isSecure || socket.bytesRead === 0) {
          socket.destroy(new Error('the replica did not answer after it had been connected'));
        }
      }, timeout);
      socket.once('close', () => {
        clearTimeout(timer);
      });
      const result = await secure(socket);
      isSecure = true;
      return result;
    };
    return connector;
  };
}

/** Checks that a text has certificates. Otherwise no connection would be trusted, silently. */
function checkCertificates(pem: string): void {
  const blocks = pem.match(/-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----/g);
  if (blocks === null) {
    throw new Error('those of authorities hold no certificate in PEM (BEGIN CERTIFICATE)');
  }
  for (const block of blocks) new X509Certificate(block);
}

function channelOptions(serverName: string | undefined): grpc.ClientOptions {
  return {
    // The service answers pings at any rate. A connection that has died unnoticed is replaced
    // within 15 s.
    'grpc.keepalive_time_ms': 10_000,
    'grpc.keepalive_timeout_ms': 5000,
    'grpc.keepalive_permit_without_calls': 1,
    'grpc.max_receive_message_length': MAX_ANSWER_BYTES,
    'grpc.initial_reconnect_backoff_ms': 100,
    'grpc.min_reconnect_backoff_ms': 100,
    'grpc.max_reconnect_backoff_ms': 500,
    // Repetitions are the client's own, which go to another replica.
    'grpc.enable_retries': 0,
    'grpc.service_config_disable_resolution': 1,
    'grpc.enable_http_proxy': 0,
    ...(serverName !== undefined && {
      'grpc.ssl_target_name_override': serverName,
      'grpc.default_authority': serverName,
    }),
  };
}
