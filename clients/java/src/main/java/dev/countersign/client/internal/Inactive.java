package dev.countersign.client.internal;

import dev.countersign.client.InactiveReason;

/** A token is inactive. It has no stack trace, because anybody can send tokens that are. */
final class Inactive extends Exception {
  private static final long serialVersionUID = 1L;

  final InactiveReason reason;

  Inactive(InactiveReason reason) {
    super(reason.name(), null, false, false);
    this.reason = reason;
  }
}
