/** Makes spans of calls. `openTelemetry()` of `countersign-client/telemetry` does it. */
export interface CallTracing {
  /** Begins the span of a call, such as `CreateSession` of `countersign.v1.SessionService`. */
  begin(service: string, method: string): CallSpan;
}

/** The span of a call. */
export interface CallSpan {
  /** Adds the context of the span to the metadata of a call. */
  inject(set: (name: string, value: string) => void): void;
  /** Ends the span with a code of gRPC. */
  end(code: number): void;
}
