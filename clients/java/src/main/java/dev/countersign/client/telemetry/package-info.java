/** Metrics and spans by OpenTelemetry. */
package dev.countersign.client.telemetry;
