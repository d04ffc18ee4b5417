package dev.countersign.client;

import io.grpc.Metadata;

/**
 * Is told of each logical call, for instance to make a span of it. Implementations must be safe for
 * many threads.
 */
@FunctionalInterface
public interface CallObserver {
  /**
   * Begins a call.
   *
   * @param service the full name of the service, such as {@code countersign.v1.SessionService}
   * @param method the name of the method, such as {@code Revoke}
   * @return what is told of the rest of the call
   */
  Call begin(String service, String method);

  /** A call that is under way. */
  interface Call {
    /**
     * May add metadata to the call, such as the context of a trace.
     *
     * @param metadata the metadata
     */
    void addMetadata(Metadata metadata);

    /**
     * Ends the call.
     *
     * @param error the error; null if the call has succeeded
     */
    void end(CountersignException error);
  }
}
