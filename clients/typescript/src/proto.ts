/**
 * The messages, the enums and the descriptions of the protocol. {@link Client} takes and returns
 * them. The comments are those of the proto files.
 *
 * @module
 */
export * from './gen/countersign/v1/audit_service_pb.js';
export * from './gen/countersign/v1/key_service_pb.js';
export * from './gen/countersign/v1/revocation_service_pb.js';
export * from './gen/countersign/v1/session_pb.js';
export * from './gen/countersign/v1/session_service_pb.js';
