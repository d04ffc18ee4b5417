package dev.countersign.client;

import com.google.protobuf.Message;
import dev.countersign.v1.BatchValidateRequest;
import dev.countersign.v1.BatchValidateResponse;
import dev.countersign.v1.CountSessionsRequest;
import dev.countersign.v1.CountSessionsResponse;
import dev.countersign.v1.CreateSessionRequest;
import dev.countersign.v1.CreateSessionResponse;
import dev.countersign.v1.GetJwksRequest;
import dev.countersign.v1.GetJwksResponse;
import dev.countersign.v1.GetSessionRequest;
import dev.countersign.v1.GetSessionResponse;
import dev.countersign.v1.ImportSessionsRequest;
import dev.countersign.v1.ImportSessionsResponse;
import dev.countersign.v1.ListAuditRequest;
import dev.countersign.v1.ListAuditResponse;
import dev.countersign.v1.ListKeysRequest;
import dev.countersign.v1.ListKeysResponse;
import dev.countersign.v1.ListRevocationsRequest;
import dev.countersign.v1.ListRevocationsResponse;
import dev.countersign.v1.ListSessionsRequest;
import dev.countersign.v1.ListSessionsResponse;
import dev.countersign.v1.ReauthenticateRequest;
import dev.countersign.v1.ReauthenticateResponse;
import dev.countersign.v1.RefreshRequest;
import dev.countersign.v1.RefreshResponse;
import dev.countersign.v1.RevokeKeyRequest;
import dev.countersign.v1.RevokeKeyResponse;
import dev.countersign.v1.RevokeRequest;
import dev.countersign.v1.RevokeResponse;
import dev.countersign.v1.RotateKeyRequest;
import dev.countersign.v1.RotateKeyResponse;
import dev.countersign.v1.UpdateSessionRequest;
import dev.countersign.v1.UpdateSessionResponse;
import dev.countersign.v1.ValidateRequest;
import dev.countersign.v1.ValidateResponse;
import dev.countersign.v1.WatchRequest;
import dev.countersign.v1.WatchResponse;
import io.grpc.MethodDescriptor;
import io.grpc.protobuf.ProtoUtils;
import java.util.List;

/** The calls of the services, as gRPC describes them. */
final class Methods {
  private static final String PACKAGE = "countersign.v1.";

  /**
   * A call, besides its request.
   *
   * @param descriptor the method
   * @param isRepeatable true if the call has the same effect however often it is made; otherwise it
   *     is repeated only if the service has certainly done nothing
   * @param isRevocation true if the purpose of the call is a revocation, which may take longer
   */
  record Call<Q, R>(MethodDescriptor<Q, R> descriptor, boolean isRepeatable, boolean isRevocation) {
    private Call<Q, R> ifRefused() {
      return new Call<>(descriptor, false, isRevocation);
    }

    private Call<Q, R> revocation() {
      return new Call<>(descriptor, isRepeatable, true);
    }
  }

  static final Call<CreateSessionRequest, CreateSessionResponse> CREATE_SESSION =
      usual(
          "SessionService",
          "CreateSession",
          CreateSessionRequest.getDefaultInstance(),
          CreateSessionResponse.getDefaultInstance());

  static final Call<ReauthenticateRequest, ReauthenticateResponse> REAUTHENTICATE =
      usual(
              "SessionService",
              "Reauthenticate",
              ReauthenticateRequest.getDefaultInstance(),
              ReauthenticateResponse.getDefaultInstance())
          .revocation();

  static final Call<RefreshRequest, RefreshResponse> REFRESH =
      usual(
              "SessionService",
              "Refresh",
              RefreshRequest.getDefaultInstance(),
              RefreshResponse.getDefaultInstance())
          .ifRefused();

  static final Call<UpdateSessionRequest, UpdateSessionResponse> UPDATE_SESSION =
      usual(
              "SessionService",
              "UpdateSession",
              UpdateSessionRequest.getDefaultInstance(),
              UpdateSessionResponse.getDefaultInstance())
          .ifRefused()
          .revocation();

  static final Call<ImportSessionsRequest, ImportSessionsResponse> IMPORT_SESSIONS =
      usual(
              "SessionService",
              "ImportSessions",
              ImportSessionsRequest.getDefaultInstance(),
              ImportSessionsResponse.getDefaultInstance())
          .revocation();

  static final Call<ValidateRequest, ValidateResponse> VALIDATE =
      usual(
          "SessionService",
          "Validate",
          ValidateRequest.getDefaultInstance(),
          ValidateResponse.getDefaultInstance());

  static final Call<BatchValidateRequest, BatchValidateResponse> BATCH_VALIDATE =
      usual(
          "SessionService",
          "BatchValidate",
          BatchValidateRequest.getDefaultInstance(),
          BatchValidateResponse.getDefaultInstance());

  static final Call<RevokeRequest, RevokeResponse> REVOKE =
      usual(
              "SessionService",
              "Revoke",
              RevokeRequest.getDefaultInstance(),
              RevokeResponse.getDefaultInstance())
          .revocation();

  static final Call<ListRevocationsRequest, ListRevocationsResponse> LIST_REVOCATIONS =
      usual(
          "SessionService",
          "ListRevocations",
          ListRevocationsRequest.getDefaultInstance(),
          ListRevocationsResponse.getDefaultInstance());

  static final Call<GetSessionRequest, GetSessionResponse> GET_SESSION =
      usual(
          "SessionService",
          "GetSession",
          GetSessionRequest.getDefaultInstance(),
          GetSessionResponse.getDefaultInstance());

  static final Call<ListSessionsRequest, ListSessionsResponse> LIST_SESSIONS =
      usual(
          "SessionService",
          "ListSessions",
          ListSessionsRequest.getDefaultInstance(),
          ListSessionsResponse.getDefaultInstance());

  static final Call<CountSessionsRequest, CountSessionsResponse> COUNT_SESSIONS =
      usual(
          "SessionService",
          "CountSessions",
          CountSessionsRequest.getDefaultInstance(),
          CountSessionsResponse.getDefaultInstance());

  static final Call<GetJwksRequest, GetJwksResponse> GET_JWKS =
      usual(
          "KeyService",
          "GetJwks",
          GetJwksRequest.getDefaultInstance(),
          GetJwksResponse.getDefaultInstance());

  static final Call<ListKeysRequest, ListKeysResponse> LIST_KEYS =
      usual(
          "KeyService",
          "ListKeys",
          ListKeysRequest.getDefaultInstance(),
          ListKeysResponse.getDefaultInstance());

  static final Call<RotateKeyRequest, RotateKeyResponse> ROTATE_KEY =
      usual(
              "KeyService",
              "RotateKey",
              RotateKeyRequest.getDefaultInstance(),
              RotateKeyResponse.getDefaultInstance())
          .ifRefused();

  static final Call<RevokeKeyRequest, RevokeKeyResponse> REVOKE_KEY =
      usual(
              "KeyService",
              "RevokeKey",
              RevokeKeyRequest.getDefaultInstance(),
              RevokeKeyResponse.getDefaultInstance())
          .revocation();

  static final Call<ListAuditRequest, ListAuditResponse> LIST_AUDIT =
      usual(
          "AuditService",
          "ListAudit",
          ListAuditRequest.getDefaultInstance(),
          ListAuditResponse.getDefaultInstance());

  /** The stream of a watcher. */
  static final MethodDescriptor<WatchRequest, WatchResponse> WATCH =
      describe(
          "RevocationService",
          "Watch",
          MethodDescriptor.MethodType.BIDI_STREAMING,
          WatchRequest.getDefaultInstance(),
          WatchResponse.getDefaultInstance());

  /** All calls but the stream. */
  static final List<Call<?, ?>> ALL =
      List.of(
          CREATE_SESSION,
          REAUTHENTICATE,
          REFRESH,
          UPDATE_SESSION,
          IMPORT_SESSIONS,
          VALIDATE,
          BATCH_VALIDATE,
          REVOKE,
          LIST_REVOCATIONS,
          GET_SESSION,
          LIST_SESSIONS,
          COUNT_SESSIONS,
          GET_JWKS,
          LIST_KEYS,
          ROTATE_KEY,
          REVOKE_KEY,
          LIST_AUDIT);

  private Methods() {}

  private static <Q extends Message, R extends Message> Call<Q, R> usual(
      String service, String method, Q request, R response) {
    return new Call<>(
        describe(service, method, MethodDescriptor.MethodType.UNARY, request, response),
        true,
        false);
  }

  private static <Q extends Message, R extends Message> MethodDescriptor<Q, R> describe(
      String service, String method, MethodDescriptor.MethodType type, Q request, R response) {
    return MethodDescriptor.newBuilder(
            ProtoUtils.marshaller(request), ProtoUtils.marshaller(response))
        .setType(type)
        .setFullMethodName(MethodDescriptor.generateFullMethodName(PACKAGE + service, method))
        .setSampledToLocalTracing(true)
        .build();
  }
}
