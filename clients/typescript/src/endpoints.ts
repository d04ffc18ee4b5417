import * as grpc from '@grpc/grpc-js';

import { CountersignError } from './errors.js';

/** The time for which a replica that has failed gets no calls if another one can get them. */
const AVOIDED_FOR = 2000;

/** A replica of the service. */
export class Replica {
  #channel: grpc.Client | undefined;
  /** The uptime until which other replicas are preferred. */
  avoidedUntil = 0;

  constructor(
    readonly number: number,
    readonly address: string,
    readonly credentials: grpc.ChannelCredentials,
    readonly options: grpc.ClientOptions,
  ) {}

  /** The connection that calls share. It is opened by the first call. */
  get channel(): grpc.Client {
    return (this.#channel ??= this.#open({}));
  }

  /** Opens a connection that is not shared, so that one that has died is given up with it. */
  openOwnChannel(): grpc.Client {
    return this.#open({ 'grpc.use_local_subchannel_pool': 1 });
  }

  #open(further: grpc.ClientOptions): grpc.Client {
    return new grpc.Client(this.address, this.credentials, { ...this.options, ...further });
  }

  /** Closes the connection. */
  close(): void {
    this.#channel?.close();
    this.#channel = undefined;
  }
}

/**
 * Waits until a channel is connected, or has failed to connect, so that a call fails at once and
 * says why.
 *
 * @throws {@link CountersignError} if it takes too long
 */
export async function connect(channel: grpc.Client, milliseconds: number): Promise<void> {
  const link = channel.getChannel();
  const ends = performance.now() + milliseconds;
  for (;;) {
    const state = link.getConnectivityState(true);
    if (state !== grpc.connectivityState.IDLE && state !== grpc.connectivityState.CONNECTING) {
      return;
    }
    const left = ends - performance.now();
    if (left <= 0) {
      const limit = milliseconds.toFixed(0);
      throw CountersignError.unreachable(
        `a connection to ${link.getTarget()} could not be made within ${limit} ms`,
      );
    }
    await new Promise<void>((resolve) => {
      link.watchConnectivityState(state, Date.now() + left, () => {
        resolve();
      });
    });
  }
}

/** The replicas of the service. Calls go to one after the other. */
export class Endpoints {
  readonly #replicas: readonly Replica[];
  #next = 0;

  /** Creates the replicas, of which there must be at least one. */
  constructor(replicas: readonly Replica[]) {
    this.#replicas = replicas;
  }

  /** The number of replicas. */
  get size(): number {
    return this.#replicas.length;
  }

  /**
   * Returns the replica that gets the next call: if possible one that has not failed recently, and
   * in any case another one than `failed`, if there is another one. `failed` is the replica that
   * has just failed to answer the same call.
   */
  next(failed?: Replica): Replica {
    const first = this.#next++ % this.size;
    const rotated = [...this.#replicas.slice(first), ...this.#replicas.slice(0, first)];
    const others = rotated.filter((replica) => replica !== failed);
    const now = performance.now();
    const chosen = others.find((replica) => replica.avoidedUntil <= now) ?? others[0] ?? rotated[0];
    if (chosen === undefined) throw CountersignError.unreachable('there is no replica');
    return chosen;
  }

  /** Prefers other replicas for a while, because this one has failed. */
  avoid(replica: Replica): void {
    replica.avoidedUntil = performance.now() + AVOIDED_FOR;
  }

  /** Prefers a replica no less than others, because it has answered. */
  trust(replica: Replica): void {
    replica.avoidedUntil = 0;
  }

  /** Keeps in mind that a replica has failed, or that it works. */
  note(replica: Replica, error: CountersignError): void {
    if (FAILURES.has(error.reason)) this.avoid(replica);
    else this.trust(replica);
  }

  /** Closes all connections. */
  close(): void {
    for (const replica of this.#replicas) replica.close();
  }
}

const FAILURES: ReadonlySet<string> = new Set([
  'UNREACHABLE',
  'NOT_CURRENT',
  'STORE_UNAVAILABLE',
  'OVERLOADED',
  'DEADLINE_EXCEEDED',
]);
