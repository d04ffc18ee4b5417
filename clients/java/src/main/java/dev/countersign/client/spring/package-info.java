/** Sessions for Spring Security, which an application that uses this package must depend on. */
package dev.countersign.client.spring;
