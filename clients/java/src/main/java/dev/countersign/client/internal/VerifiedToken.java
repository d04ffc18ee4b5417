package dev.countersign.client.internal;

/** A token whose signature was verified: the name of its key, and its claims. */
record VerifiedToken(String keyId, Claims claims) {}
