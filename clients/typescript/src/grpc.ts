/**
 * An interceptor for servers of `@grpc/grpc-js`.
 *
 * @module
 */
import { create, toBinary } from '@bufbuild/protobuf';
import { anyPack } from '@bufbuild/protobuf/wkt';
import {
  Metadata,
  type ServerInterceptor,
  ServerInterceptingCall,
  ServerListenerBuilder,
  status as Code,
} from '@grpc/grpc-js';

import { type CheckedDemands, checkDemands, type Demands } from './demands.js';
import {
  ErrorInfoSchema,
  RetryInfoSchema,
  StatusSchema,
} from './gen/google/rpc/error_details_pb.js';
import { type Denial, denialOf, describe, unmet } from './http/challenge.js';
import { findCredential } from './http/credential.js';
import { getSession, requireSession, setSession } from './http/sessions.js';
import { Session } from './session.js';
import type { Verifier } from './verifier.js';

/** The `domain` in `ErrorInfo` of denied calls. */
const DOMAIN = 'countersign';
/** The pause after which a call may be repeated that could not be checked, in milliseconds. */
const RETRY_MS = 500;

/** The settings of {@link protect}. */
export interface ProtectOptions {
  /**
   * The methods with other demands, or with none (`public`), by their path, such as
   * `/shop.v1.Orders/Cancel`.
   */
  readonly methods?: Readonly<Record<string, Demands | 'public'>> | undefined;
}

/**
 * Makes an interceptor that lets only calls pass whose access token is active and meets the demands
 * of the method. The token is in the metadata `authorization`, with the scheme `Bearer`. A stream
 * is checked when it begins. Other calls are answered, with an `ErrorInfo` whose domain is
 * `countersign`:
 *
 * | the call | the code | the reason |
 * |---|---|---|
 * | has no token, or several | UNAUTHENTICATED | `NO_TOKEN`, `SEVERAL_TOKENS` |
 * | has an inactive token | UNAUTHENTICATED | the {@link InactiveReason}, such as `EXPIRED` |
 * | needs a stronger or more recent authentication | UNAUTHENTICATED | `STEP_UP_REQUIRED`, with `acr_values` and `max_age` in the metadata |
 * | lacks a scope | PERMISSION_DENIED | `INSUFFICIENT_SCOPE`, with `scope` in the metadata |
 * | cannot be checked now | UNAVAILABLE | `TOKEN_NOT_CHECKED`, with `RetryInfo` |
 *
 * ```ts
 * const server = new Server({
 *   interceptors: [
 *     protect(verifier, { audience: 'https://orders.example' }, {
 *       methods: { '/grpc.health.v1.Health/Check': 'public' },
 *     }),
 *   ],
 * });
 * ```
 *
 * @throws TypeError for demands that are not valid
 */
export function protect(
  verifier: Verifier,
  demands?: Demands,
  options: ProtectOptions = {},
): ServerInterceptor {
  const usual = { given: structuredClone(demands), checked: checkDemands(demands) };
  const methods = new Map(
    Object.entries(options.methods ?? {}).map(([path, own]) => [
      path,
      own === 'public' ? own : { given: structuredClone(own), checked: checkDemands(own) },
    ]),
  );
  return (method, call) => {
    const demanded = methods.get(method.path) ?? usual;
    if (demanded === 'public') return new ServerInterceptingCall(call);
    const listener = new ServerListenerBuilder()
      .withOnReceiveMetadata((metadata, next) => {
        check(verifier, metadata, demanded.given).then(
          (outcome) => {
            if (outcome instanceof Session) {
              setSession(metadata, outcome);
              next(metadata);
            } else {
              call.sendStatus(statusOf(outcome, demanded.checked));
            }
          },
          () => {
            call.sendStatus({ code: Code.INTERNAL, details: 'the token could not be checked' });
          },
        );
      })
      .build();
    return new ServerInterceptingCall(call, {
      start: (next) => {
        next(listener);
      },
    });
  };
}

/** Returns the session of a protected call, or throws an error if the method is public. */
export function sessionOf(call: { readonly metadata: Metadata }): Session {
  return requireSession(call.metadata);
}

/** Returns the session of a call, if it has one. */
export function findSession(call: { readonly metadata: Metadata }): Session | undefined {
  return getSession(call.metadata);
}

async function check(
  verifier: Verifier,
  metadata: Metadata,
  demands: Demands | undefined,
): Promise<Session | Denial> {
  const values = metadata.get('authorization').map(String);
  const found = findCredential(values, [], undefined);
  if (found === 'none') return 'no_token';
  if (typeof found === 'string') return 'several_tokens';
  const answer = await verifier.verify(found.token, demands);
  return answer.status === 'active' ? answer.session : denialOf(answer);
}

function statusOf(
  denial: Denial,
  demands: CheckedDemands,
): { code: Code; details: string; metadata: Metadata } {
  const [code, reason] = codeOf(denial);
  const message = describe(denial, demands);
  const info = { reason, domain: DOMAIN, metadata: Object.fromEntries(unmet(denial, demands)) };
  const details = [anyPack(ErrorInfoSchema, create(ErrorInfoSchema, info))];
  if (denial === 'unknown') {
    const retry = { retryDelay: { seconds: 0n, nanos: RETRY_MS * 1_000_000 } };
    details.push(anyPack(RetryInfoSchema, create(RetryInfoSchema, retry)));
  }
  const metadata = new Metadata();
  const status = create(StatusSchema, { code, message, details });
  metadata.set('grpc-status-details-bin', Buffer.from(toBinary(StatusSchema, status)));
  return { code, details: message, metadata };
}

function codeOf(denial: Denial): [Code, string] {
  switch (denial) {
    case 'no_token':
      return [Code.UNAUTHENTICATED, 'NO_TOKEN'];
    case 'several_tokens':
    case 'conflicting_cookies':
      return [Code.UNAUTHENTICATED, 'SEVERAL_TOKENS'];
    case 'unknown':
      return [Code.UNAVAILABLE, 'TOKEN_NOT_CHECKED'];
    case 'INSUFFICIENT_SCOPE':
      return [Code.PERMISSION_DENIED, denial];
    default:
      return [Code.UNAUTHENTICATED, denial];
  }
}
