/**
 * Metrics and spans by the API of OpenTelemetry, which must be installed (`@opentelemetry/api`).
 *
 * @module
 */
import {
  context,
  type Meter,
  metrics,
  propagation,
  SpanKind,
  SpanStatusCode,
  trace,
} from '@opentelemetry/api';

import type { CallTracing } from './tracing.js';
import type { Status, Verifier } from './verifier.js';

const NAME = 'countersign-client';
/** The value of the gauge for a lease that does not end, in seconds. */
const LONGEST = 86_400;

/**
 * Makes spans of calls, which carry the trace context by the propagator that the application has
 * set. Give it to a client:
 *
 * ```ts
 * const client = new Client({ endpoints, tracing: openTelemetry() });
 * ```
 */
export function openTelemetry(): CallTracing {
  return {
    begin: (service, method) => {
      const span = trace.getTracer(NAME).startSpan(`${service}/${method}`, {
        kind: SpanKind.CLIENT,
        attributes: { 'rpc.system': 'grpc', 'rpc.service': service, 'rpc.method': method },
      });
      const own = trace.setSpan(context.active(), span);
      return {
        inject: (set) => {
          propagation.inject(own, undefined, {
            set: (_, name, value) => {
              set(name, value);
            },
          });
        },
        end: (code) => {
          span.setAttribute('rpc.grpc.status_code', code);
          if (code !== 0) span.setStatus({ code: SpanStatusCode.ERROR });
          span.end();
        },
      };
    },
  };
}

/**
 * Registers the metrics of a verifier with a meter, by default that of the application's global
 * provider. They end with the verifier.
 *
 * | metric | kind | unit | meaning |
 * |---|---|---|---|
 * | `countersign.client.checks` | counter | `{check}` | checks, by `mode` and `result` |
 * | `countersign.client.lease` | gauge | `s` | the time for which a local verifier can still answer |
 * | `countersign.client.watch.lag` | gauge | `s` | the time that the last renewal of the lease took |
 * | `countersign.client.watch.revocations` | gauge | `{revocation}` | revocations in the copy |
 * | `countersign.client.watch.connections` | counter | `{connection}` | streams that were begun |
 * | `countersign.client.watch.resets` | counter | `{reset}` | streams that began with everything anew |
 */
export function observe(verifier: Verifier, meter: Meter = metrics.getMeter(NAME)): void {
  // The meter must not keep a verifier that is used no more.
  const reference = new WeakRef(verifier);
  const observed = (): Verifier | undefined => {
    const found = reference.deref();
    return found === undefined || found.isClosed ? undefined : found;
  };

  meter
    .createObservableCounter('countersign.client.checks', {
      unit: '{check}',
      description: 'Checks of tokens by their result',
    })
    .addCallback((observer) => {
      const found = observed();
      for (const [result, count] of found?.counts ?? []) {
        if (found && count > 0) observer.observe(count, { mode: found.mode, result });
      }
    });

  const add = (
    kind: 'createObservableCounter' | 'createObservableGauge',
    name: string,
    unit: string,
    description: string,
    read: (status: Status) => number,
  ): void => {
    const instrument = meter[kind](`countersign.client.${name}`, { unit, description });
    instrument.addCallback((observer) => {
      const found = observed();
      if (found) observer.observe(read(found.status), { mode: found.mode });
    });
  };
  add(
    'createObservableGauge',
    'lease',
    's',
    'The time for which the verifier can still answer by itself',
    ({ leaseMs }) => Math.min(leaseMs / 1000, LONGEST),
  );
  add(
    'createObservableGauge',
    'watch.lag',
    's',
    'The time of the last renewal',
    ({ lagMs }) => lagMs / 1000,
  );
  add(
    'createObservableGauge',
    'watch.revocations',
    '{revocation}',
    'Revocations in the copy of the verifier',
    ({ revocations }) => revocations,
  );
  add(
    'createObservableCounter',
    'watch.connections',
    '{connection}',
    'Streams, or fetches of keys, that were begun',
    ({ connections }) => connections,
  );
  add(
    'createObservableCounter',
    'watch.resets',
    '{reset}',
    'Streams that began with everything anew',
    ({ resets }) => resets,
  );
}
