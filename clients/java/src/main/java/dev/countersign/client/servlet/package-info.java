/** Middleware for servlets. */
package dev.countersign.client.servlet;
