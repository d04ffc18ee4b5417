package dev.countersign.client.internal;

/**
 * The text is not the JSON that is expected. It has no stack trace, because anybody can send texts
 * that are not JSON.
 */
public final class JsonException extends Exception {
  private static final long serialVersionUID = 1L;

  JsonException() {
    super("the text is not the JSON that is expected", null, false, false);
  }
}
