/** Middleware for servers of gRPC. */
package dev.countersign.client.grpc;
