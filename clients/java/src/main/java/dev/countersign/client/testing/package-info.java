/** An authority within the process, for the tests of applications. */
package dev.countersign.client.testing;
