package dev.countersign.client.internal;

import dev.countersign.client.InactiveReason;

/** The answer of a copy: the claims of an active token, or the reason why it is inactive. */
public record LocalAnswer(Claims claims, InactiveReason reason) {}
