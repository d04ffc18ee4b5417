"""Calls to the service, with deadlines and repetitions. `countersign.aio` is for asyncio."""

import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self, cast

import grpc

from countersign import _calls, proto, telemetry
from countersign._calls import (
    WATCH,
    Attempts,
    Call,
    Q,
    R,
    note_failure,
    with_create_id,
    with_reauthenticate_id,
)
from countersign._endpoints import Endpoints, Settings, read_settings
from countersign.errors import CountersignError


class Client:
    """A client of the service. Threads may share it.

    Every call has a deadline. A call that a replica cannot answer is repeated at another replica
    until the deadline, unless it may have taken effect and must not take effect twice. All calls
    raise `CountersignError`.
    """

    def __init__(  # noqa: PLR0913 (They are named.)
        self,
        endpoints: str | Sequence[str],
        *,
        api_key: str | None = None,
        ca_certificate: bytes | None = None,
        client_certificate: tuple[bytes, bytes] | None = None,
        server_name: str | None = None,
        deadline: float = 1.0,
        revocation_deadline: float = 5.0,
        connect_timeout: float = 0.5,
    ) -> None:
        """Creates a client of these replicas, such as `https://sessions.example:50051`.

        It connects when it is first used.

        Args:
            endpoints: The URLs of the replicas. Calls go to them in turn, and a call that one of
                them cannot answer is repeated at another.
            api_key: The key that is sent with each call. It is a secret, so the endpoints should
                begin with `https://`.
            ca_certificate: Trusts only certificates of these authorities, in PEM. Otherwise those
                that gRPC brings along are trusted.
            client_certificate: Identifies as a caller by this certificate and its private key, in
                PEM.
            server_name: Expects this name in the certificate of the service, instead of the host of
                the endpoint.
            deadline: The longest time that a call may take, with its repetitions, in seconds.
            revocation_deadline: The longest time for calls whose purpose is a revocation: `revoke`,
                `revoke_key`, `reauthenticate`, `update_session` and `import_sessions`. Such a call
                waits for a replica or a watcher that has died, for up to 2.3 s.
            connect_timeout: The longest time that it may take to connect to a replica, before
                another one is tried.

        Raises:
            BuildError: The client cannot be built from these settings.
        """
        settings = read_settings(
            endpoints,
            api_key=api_key,
            ca_certificate=ca_certificate,
            client_certificate=client_certificate,
            server_name=server_name,
            deadline=deadline,
            revocation_deadline=revocation_deadline,
            connect_timeout=connect_timeout,
        )
        self._open(settings)

    def _open(self, settings: Settings) -> None:
        self._settings = settings
        self._endpoints = Endpoints(len(settings.targets))
        self._channels = [_channel(settings, target) for target in settings.targets]

    @classmethod
    def of_settings(cls, settings: Settings) -> Self:
        """Creates a client with the settings of another one."""
        client = cls.__new__(cls)
        client._open(settings)  # noqa: SLF001 (It is of this class.)
        return client

    @property
    def settings(self) -> Settings:
        """The settings, which have no public form."""
        return self._settings

    def close(self) -> None:
        """Closes the connections. Calls under way fail."""
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client(endpoints={list(self._settings.targets)!r})"

    def create_session(
        self, request: proto.CreateSessionRequest, *, deadline: float | None = None
    ) -> proto.CreateSessionResponse:
        """Starts a session for a user whom the caller has authenticated.

        If the request has no request id, it gets one, so that a repetition by this method yields
        the same session. To make a later call safe too, set a request id of your own.
        """
        return self._call(_calls.CREATE_SESSION, with_create_id(request), deadline)

    def refresh(
        self, request: proto.RefreshRequest, *, deadline: float | None = None
    ) -> proto.RefreshResponse:
        """Exchanges a refresh token for the next pair of tokens.

        The call is repeated only if the service has certainly not exchanged the token. After
        another error, exchange the same refresh token again: within the grace of its policy, it
        yields the same tokens.
        """
        return self._call(_calls.REFRESH, request, deadline)

    def reauthenticate(
        self, request: proto.ReauthenticateRequest, *, deadline: float | None = None
    ) -> proto.ReauthenticateResponse:
        """Records that the user of a session has authenticated again.

        No earlier token of the session is accepted any more. The request gets a request id as in
        `create_session`.
        """
        return self._call(_calls.REAUTHENTICATE, with_reauthenticate_id(request), deadline)

    def update_session(
        self, request: proto.UpdateSessionRequest, *, deadline: float | None = None
    ) -> proto.UpdateSessionResponse:
        """Changes data of a live session.

        The call is not repeated once it may have taken effect.
        """
        return self._call(_calls.UPDATE_SESSION, request, deadline)

    def import_sessions(
        self, request: proto.ImportSessionsRequest, *, deadline: float | None = None
    ) -> proto.ImportSessionsResponse:
        """Takes over live sessions of another system."""
        return self._call(_calls.IMPORT_SESSIONS, request, deadline)

    def validate(
        self, request: proto.ValidateRequest, *, deadline: float | None = None
    ) -> proto.ValidateResponse:
        """Checks whether an access token is active.

        A `Verifier` has a simpler answer, and can do it without a call.
        """
        return self._call(_calls.VALIDATE, request, deadline)

    def batch_validate(
        self, request: proto.BatchValidateRequest, *, deadline: float | None = None
    ) -> proto.BatchValidateResponse:
        """Validates up to 256 tokens in one call."""
        return self._call(_calls.BATCH_VALIDATE, request, deadline)

    def revoke(
        self, request: proto.RevokeRequest, *, deadline: float | None = None
    ) -> proto.RevokeResponse:
        """Ends sessions, or makes a single access token inactive.

        Once this has returned, no replica and no watcher accepts a revoked token any more.
        """
        return self._call(_calls.REVOKE, request, deadline)

    def list_revocations(
        self, request: proto.ListRevocationsRequest, *, deadline: float | None = None
    ) -> proto.ListRevocationsResponse:
        """Lists revocations of many sessions."""
        return self._call(_calls.LIST_REVOCATIONS, request, deadline)

    def get_session(
        self, request: proto.GetSessionRequest, *, deadline: float | None = None
    ) -> proto.GetSessionResponse:
        """Returns one session."""
        return self._call(_calls.GET_SESSION, request, deadline)

    def list_sessions(
        self, request: proto.ListSessionsRequest, *, deadline: float | None = None
    ) -> proto.ListSessionsResponse:
        """Lists sessions of a tenant."""
        return self._call(_calls.LIST_SESSIONS, request, deadline)

    def count_sessions(
        self, request: proto.CountSessionsRequest, *, deadline: float | None = None
    ) -> proto.CountSessionsResponse:
        """Counts sessions of a tenant."""
        return self._call(_calls.COUNT_SESSIONS, request, deadline)

    def get_jwks(
        self, request: proto.GetJwksRequest, *, deadline: float | None = None
    ) -> proto.GetJwksResponse:
        """Returns the public keys that verify access tokens."""
        return self._call(_calls.GET_JWKS, request, deadline)

    def list_keys(
        self, request: proto.ListKeysRequest, *, deadline: float | None = None
    ) -> proto.ListKeysResponse:
        """Lists all keys."""
        return self._call(_calls.LIST_KEYS, request, deadline)

    def rotate_key(
        self, request: proto.RotateKeyRequest, *, deadline: float | None = None
    ) -> proto.RotateKeyResponse:
        """Makes the pending key active."""
        return self._call(_calls.ROTATE_KEY, request, deadline)

    def revoke_key(
        self, request: proto.RevokeKeyRequest, *, deadline: float | None = None
    ) -> proto.RevokeKeyResponse:
        """Revokes a key.

        Once this has returned, no replica and no watcher accepts any token of that key.
        """
        return self._call(_calls.REVOKE_KEY, request, deadline)

    def list_audit(
        self, request: proto.ListAuditRequest, *, deadline: float | None = None
    ) -> proto.ListAuditResponse:
        """Lists records of the audit."""
        return self._call(_calls.LIST_AUDIT, request, deadline)

    def _call(self, call: Call[Q, R], request: Q, deadline: float | None) -> R:
        """Makes a call, and repeats it at other replicas until its deadline."""
        attempts = Attempts(call, self._settings, self._endpoints, deadline)
        with telemetry.call_span(call.service, call.method):
            metadata = telemetry.call_metadata(self._settings.authorization)
            while True:
                replica = self._endpoints.next()
                send = self._channels[replica].unary_unary(
                    call.path,
                    request_serializer=type(request).SerializeToString,
                    response_deserializer=call.response.FromString,
                )
                try:
                    response = send(request, timeout=attempts.remaining(), metadata=metadata)
                except grpc.RpcError as failure:
                    error = _read(failure)
                    delay = attempts.failed(replica, error)
                    if delay is None:
                        raise error from failure
                    time.sleep(delay)
                else:
                    attempts.succeeded(replica)
                    return response

    def open_watch(self, requests: Iterator[proto.WatchRequest]) -> "WatchStream":
        """Calls Watch at the next replica, for a local verifier.

        The connection is not shared, so that one that has died is given up with the stream.
        """
        replica = self._endpoints.next()
        channel = _channel(self._settings, self._settings.targets[replica])
        watch = channel.stream_stream(
            WATCH,
            request_serializer=proto.WatchRequest.SerializeToString,
            response_deserializer=proto.WatchResponse.FromString,
        )
        responses = watch(requests, metadata=telemetry.call_metadata(self._settings.authorization))
        return WatchStream(channel, responses, self._endpoints, replica)

    @property
    def replicas(self) -> int:
        """The number of replicas."""
        return len(self._endpoints)


class WatchStream:
    """A stream of Watch, with the connection that it alone uses."""

    def __init__(
        self,
        channel: grpc.Channel,
        responses: "grpc._CallIterator[proto.WatchResponse]",
        endpoints: Endpoints,
        replica: int,
    ) -> None:
        self._channel = channel
        self._responses = responses
        self._endpoints = endpoints
        self._replica = replica

    def __iter__(self) -> Iterator[proto.WatchResponse]:
        """Yields responses until the stream ends. Raises `CountersignError` if it fails."""
        try:
            for response in self._responses:
                self._endpoints.trust(self._replica)
                yield response
        except grpc.RpcError as failure:
            error = _read(failure)
            note_failure(self._endpoints, self._replica, error)
            raise error from failure

    def cancel(self) -> None:
        """Ends the stream. Another thread may call this."""
        self._responses.cancel()

    def close(self) -> None:
        """Closes the connection. Other replicas are preferred for a while."""
        self._endpoints.avoid(self._replica)
        self._responses.cancel()
        self._channel.close()


def _read(failure: grpc.RpcError) -> CountersignError:
    # Each error of a call is a `grpc.Call`, too. The types do not say so.
    return CountersignError.from_grpc(cast("grpc.Call", failure))


def _channel(settings: Settings, target: str) -> grpc.Channel:
    if settings.credentials is None:
        return grpc.insecure_channel(target, settings.options())
    return grpc.secure_channel(target, settings.credentials, settings.options())
