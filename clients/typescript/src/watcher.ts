import { create } from '@bufbuild/protobuf';
import type { ServiceError } from '@grpc/grpc-js';

import { backoff, callWatch, type Client, pause, type WatchStream } from './client.js';
import { type Held, readClocks } from './core/lease.js';
import type { Local, Rules } from './core/local.js';
import { connect } from './endpoints.js';
import { CountersignError } from './errors.js';
import {
  WatchRequestSchema,
  type WatchRequest,
  type WatchResponse,
} from './gen/countersign/v1/revocation_service_pb.js';
import { MAX_ASKED, readKeys, span, StreamError, StreamState, Watching } from './watching.js';

// The delays between the end of a stream and the next one, in milliseconds.
const LEAST_DELAY = 25;
const LONGEST_DELAY = 1000;
/** The longest pause between two streams that the service can ask for. */
const LONGEST_PAUSE = 30_000;
/** The least time between two fetches of keys. */
const LEAST_FETCH_DELAY = 1000;
/** The time after which keys are fetched again that the service would allow to cache for longer. */
const LONGEST_FETCH_DELAY = 600_000;

/** Work in the background. */
export interface Background {
  /** Ends the work. */
  close(): void;
}

/** Returns an error in words. */
function words(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/**
 * The background task of a local verifier. It calls Watch, applies what it is sent, and renews the
 * lease. After the end of a stream another one is opened, if possible at another replica. Until
 * then the lease goes on.
 */
export class Watcher implements Background {
  readonly #client: Client;
  readonly #watching: Watching;
  readonly #local: Local;
  readonly #closing = new AbortController();

  constructor(client: Client, local: Local) {
    this.#client = client;
    this.#local = local;
    this.#watching = new Watching(local, client.settings.logger);
  }

  /** Starts the task. */
  start(): this {
    void this.#run(this.#closing.signal);
    return this;
  }

  /** Ends the task. */
  close(): void {
    this.#closing.abort();
  }

  async #run(closing: AbortSignal): Promise<void> {
    let failed = 0;
    const isClosed = (): boolean => closing.aborted;
    while (!isClosed()) {
      this.#local.connections++;
      const state = new StreamState();
      const ended = await this.#watch(state, closing);
      if (isClosed()) return;
      if (state.hadLease) failed = 0;
      // Many watchers lose their streams at the same time, so the delays are random.
      let delay = backoff(LEAST_DELAY, LONGEST_DELAY, failed);
      failed++;
      if (ended instanceof CountersignError) {
        if (ended.reason === 'INVALID_FIELD' || ended.reason === 'NOT_SENT') {
          this.#watching.forgetCursor();
        }
        // The wait that a replica asks for is for itself, and others may have room.
        if (failed >= this.#client.endpoints.size) {
          delay = Math.max(delay, Math.min(ended.retryAfterMs ?? 0, LONGEST_PAUSE));
        }
      }
      this.#client.settings.logger.warn(
        `the watch stream has ended, and is begun again in ${delay.toFixed(0)} ms: ` + words(ended),
      );
      await pause(delay, closing).catch(() => undefined);
    }
  }

  /** Watches until the stream ends. Returns the reason. */
  async #watch(state: StreamState, closing: AbortSignal): Promise<unknown> {
    const { endpoints, settings } = this.#client;
    const replica = endpoints.next();
    const channel = replica.openOwnChannel();
    try {
      await connect(channel, settings.deadlineMs);
      closing.throwIfAborted();
      const stream = callWatch(this.#client, channel);
      return await this.#follow(stream, state, closing);
    } catch (error) {
      return error;
    } finally {
      channel.close();
      endpoints.avoid(replica);
    }
  }

  /** Handles the messages one after the other, and renews the lease, until the stream ends. */
  #follow(stream: WatchStream, state: StreamState, closing: AbortSignal): Promise<unknown> {
    const watching = this.#watching;
    return new Promise((resolve) => {
      let renewal: NodeJS.Timeout | undefined;
      let leased = performance.now();
      let hasEnded = false;
      const end = (reason: unknown): void => {
        if (hasEnded) return;
        hasEnded = true;
        clearTimeout(renewal);
        clearTimeout(givingUp);
        clearTimeout(opening);
        closing.removeEventListener('abort', close);
        // A stream that is cancelled ends with an error.
        stream.on('error', () => undefined);
        stream.cancel();
        resolve(reason);
      };
      const close = (): void => {
        end(new StreamError('the verifier is closed'));
      };
      const send = (message: WatchRequest['message']): void => {
        stream.write(create(WatchRequestSchema, { message }));
      };
      const renew = (): void => {
        clearTimeout(renewal);
        renewal = setTimeout(renew, watching.interval);
        // If the connection takes no more, the next renewal will confirm the same.
        if (stream.writableLength >= MAX_ASKED) return;
        const value = watching.renew(state);
        send(create(WatchRequestSchema, { message: { case: 'renewal', value } }).message);
      };
      const giveUp = (): void => {
        const left = leased + watching.patience - performance.now();
        if (left > 0) givingUp = setTimeout(giveUp, left);
        else end(new StreamError('the stream has brought no lease for too long'));
      };
      const receive = (response: WatchResponse): void => {
        if (hasEnded) return;
        clearTimeout(opening);
        try {
          const isNews = watching.apply(state, response);
          // A large snapshot takes a while.
          if (response.event.case === 'lease' || watching.cursor.length === 0) {
            leased = performance.now();
          }
          if (isNews) renew();
        } catch (error) {
          end(error);
        }
      };

      let givingUp = setTimeout(giveUp, watching.patience);
      const opening = setTimeout(() => {
        end(CountersignError.deadlineExceeded());
      }, this.#client.settings.deadlineMs);
      closing.addEventListener('abort', close, { once: true });
      stream.on('metadata', () => {
        clearTimeout(opening);
      });
      stream.on('data', receive);
      stream.on('error', (error: ServiceError) => {
        end(CountersignError.of(error));
      });
      stream.on('end', () => {
        // An error follows the end if there is one.
        setImmediate(end, new StreamError('the service has ended the stream'));
      });
      const value = { cursor: watching.cursor };
      send(create(WatchRequestSchema, { message: { case: 'start', value } }).message);
      renewal = setTimeout(renew, watching.interval);
    });
  }
}

/** Fetches the public keys again and again, for a verifier that knows nothing else. */
export class Fetcher implements Background {
  readonly #client: Client;
  readonly #local: Local;
  readonly #rules: Rules;
  readonly #keysValidFor: number;
  readonly #closing = new AbortController();
  #isKeyUnknown = false;
  #wake: () => void = () => undefined;

  constructor(client: Client, local: Local, rules: Rules, keysValidFor: number) {
    this.#client = client;
    this.#local = local;
    this.#rules = rules;
    this.#keysValidFor = keysValidFor;
    local.onUnknownKey = () => {
      this.#isKeyUnknown = true;
      this.#wake();
    };
  }

  /** Starts the task. */
  start(): this {
    void this.#run(this.#closing.signal);
    return this;
  }

  /** Ends the task. */
  close(): void {
    this.#closing.abort();
    this.#wake();
  }

  async #run(closing: AbortSignal): Promise<void> {
    while (!closing.aborted) {
      this.#local.connections++;
      const maxAge = await this.#fetch(closing);
      await pause(LEAST_FETCH_DELAY, closing).catch(() => undefined);
      // A token with a new key may have arrived.
      await this.#waitForUnknownKey(this.delay(maxAge));
    }
  }

  /**
   * Returns the time until keys are fetched again that the service allows to cache for `maxAge`. It
   * must be well before they may no longer be used.
   */
  delay(maxAge: number): number {
    return Math.min(maxAge, LONGEST_FETCH_DELAY, this.#keysValidFor / 2);
  }

  /** Fetches the keys. Returns the time for which they may be cached. */
  async #fetch(closing: AbortSignal): Promise<number> {
    const { logger } = this.#client.settings;
    const start = readClocks(this.#local.clock);
    try {
      const { jwks, maxAge } = await this.#client.getJwks({}, { signal: closing });
      const keys = readKeys(jwks, [], logger);
      if (keys === undefined) {
        logger.error('the public keys that the service has sent cannot be read');
      } else {
        const lease: Held = { start, validFor: this.#keysValidFor };
        this.#local.replace(keys, this.#rules, lease);
        this.#local.take(start, this.#keysValidFor);
      }
      return maxAge === undefined ? 0 : span(maxAge);
    } catch (error) {
      if (!closing.aborted) {
        logger.warn(`the public keys could not be fetched: ${words(error)}`);
      }
      return 0;
    }
  }

  async #waitForUnknownKey(delay: number): Promise<void> {
    if (!this.#isKeyUnknown && !this.#closing.signal.aborted) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, delay);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
    this.#isKeyUnknown = false;
  }
}
