package dev.countersign.client;

/** A client cannot be built from its settings. The message says what to change. */
public final class BuildException extends IllegalArgumentException {
  private static final long serialVersionUID = 1L;

  BuildException(String message) {
    super(message);
  }

  BuildException(String message, Throwable cause) {
    super(message, cause);
  }
}
