package dev.countersign.client;

import java.util.Arrays;
import java.util.Map;
import java.util.function.Function;
import java.util.stream.Collectors;

/** The reason of an error, as {@code ErrorInfo.reason} names it. */
public enum Reason {
  /** A field of the request is not valid. {@link CountersignException#fields()} names it. */
  INVALID_FIELD,
  /** The request id belongs to another request, or to another caller. */
  REQUEST_ID_REUSED,
  /** The API key or the client certificate is missing or unknown. */
  CALLER_UNKNOWN,
  /** The caller lacks the role, or the tenant or audience is not one of the caller's. */
  CALLER_NOT_ALLOWED,
  /** The caller has too many calls under way, or began too many recently. */
  CALLER_OVER_LIMIT,
  /** The refresh token is malformed, forged, or from another service. */
  REFRESH_TOKEN_INVALID,
  /** The refresh token was exchanged before, so two parties have it. The session has ended. */
  REFRESH_TOKEN_REUSED,
  /** The session was ended. */
  SESSION_REVOKED,
  /** The session was not refreshed within its idle time-out. */
  SESSION_EXPIRED_IDLE,
  /** The session has reached the end of its lifetime. */
  SESSION_EXPIRED_ABSOLUTE,
  /** The subject has as many sessions as its policy allows. */
  SESSION_QUOTA_EXCEEDED,
  /** The session has changed since it was read. */
  ETAG_MISMATCH,
  /** There is no such session. */
  SESSION_NOT_FOUND,
  /** There is no such key. */
  KEY_NOT_FOUND,
  /** The pending key was published so recently that verifiers may not know it. */
  KEY_TOO_NEW,
  /** There are too many keys. */
  TOO_MANY_KEYS,
  /** The blacklist is full. */
  BLACKLIST_FULL,
  /** Too many watchers are connected to the replica. */
  TOO_MANY_WATCHERS,
  /** The watcher does not read fast enough. */
  WATCHER_TOO_SLOW,
  /** The watcher has confirmed something that was not sent. */
  NOT_SENT,
  /** The service is overloaded, and has done nothing. */
  OVERLOADED,
  /** The database is not available. A write may or may not have taken effect. */
  STORE_UNAVAILABLE,
  /** The replica starts, stops, or does not know the latest revocations. */
  NOT_CURRENT,
  /** No key is active at the moment. */
  NO_ACTIVE_KEY,
  /** The service keeps no audit in its database. */
  AUDIT_TABLE_OFF,
  /** A bug of the service, or damaged data. The service's log has the details. */
  INTERNAL,
  /** The service could not read the request. */
  MALFORMED_REQUEST,
  /** The service does not have the call; it may be older than this library. */
  UNIMPLEMENTED,
  /** The deadline of the call has passed. A write may or may not have taken effect. */
  DEADLINE_EXCEEDED,
  /** No replica could be reached, or the connection was lost during the call. */
  UNREACHABLE,
  /**
   * There is no reason, or one that this version of the library does not know. {@link
   * CountersignException#reasonName()} has its name.
   */
  OTHER;

  private static final Map<String, Reason> BY_NAME =
      Arrays.stream(values())
          .filter(reason -> reason != OTHER)
          .collect(Collectors.toUnmodifiableMap(Reason::name, Function.identity()));

  /**
   * Returns the reason with this name in {@code ErrorInfo.reason}.
   *
   * @param name the name
   * @return the reason; {@link #OTHER} for a name that is not known
   */
  public static Reason ofName(String name) {
    return BY_NAME.getOrDefault(name, OTHER);
  }
}
