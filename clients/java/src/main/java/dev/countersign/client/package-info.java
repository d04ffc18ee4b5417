/**
 * A client of the Countersign session authority: {@link dev.countersign.client.Client} calls it,
 * and {@link dev.countersign.client.Verifier} checks access tokens.
 */
package dev.countersign.client;
