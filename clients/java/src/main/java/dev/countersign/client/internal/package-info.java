/**
 * The decision whether an access token is active. This package is not for applications, and may
 * change at any time.
 */
package dev.countersign.client.internal;
