"""The client and the verifier for asyncio. They have the methods of those without it."""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import grpc.aio

from countersign import _calls, proto, telemetry
from countersign._calls import Attempts, Call, Q, R, with_create_id, with_reauthenticate_id
from countersign._clock import Clock
from countersign._endpoints import Endpoints, Settings, read_settings
from countersign._verifying import (
    CACHE_BYTES,
    NO_LEASE,
    BaseVerifier,
    Mode,
    OnLapse,
    Source,
    fetching,
    not_answered,
    read_answer,
    refuse_unasked,
    watching,
)
from countersign.answer import Answer
from countersign.client import Client as SyncClient
from countersign.demands import Demands
from countersign.errors import CountersignError

__all__ = ["Client", "Verifier"]


class Client:
    """A client of the service for asyncio. Tasks of one event loop may share it.

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

        It connects when it is first used, by the event loop that then runs.

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
        self._settings = settings
        self._endpoints = Endpoints(len(settings.targets))
        self._channels: list[grpc.aio.Channel] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def settings(self) -> Settings:
        """The settings, which have no public form."""
        return self._settings

    async def close(self) -> None:
        """Closes the connections. Calls under way fail."""
        channels, self._channels, self._loop = self._channels, [], None
        for channel in channels:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"Client(endpoints={list(self._settings.targets)!r})"

    async def create_session(
        self, request: proto.CreateSessionRequest, *, deadline: float | None = None
    ) -> proto.CreateSessionResponse:
        """Starts a session for a user whom the caller has authenticated.

        If the request has no request id, it gets one, so that a repetition by this method yields
        the same session. To make a later call safe too, set a request id of your own.
        """
        return await self._call(_calls.CREATE_SESSION, with_create_id(request), deadline)

    async def refresh(
        self, request: proto.RefreshRequest, *, deadline: float | None = None
    ) -> proto.RefreshResponse:
        """Exchanges a refresh token for the next pair of tokens.

        The call is repeated only if the service has certainly not exchanged the token. After
        another error, exchange the same refresh token again: within the grace of its policy, it
        yields the same tokens.
        """
        return await self._call(_calls.REFRESH, request, deadline)

    async def reauthenticate(
        self, request: proto.ReauthenticateRequest, *, deadline: float | None = None
    ) -> proto.ReauthenticateResponse:
        """Records that the user of a session has authenticated again.

        No earlier token of the session is accepted any more. The request gets a request id as in
        `create_session`.
        """
        return await self._call(_calls.REAUTHENTICATE, with_reauthenticate_id(request), deadline)

    async def update_session(
        self, request: proto.UpdateSessionRequest, *, deadline: float | None = None
    ) -> proto.UpdateSessionResponse:
        """Changes data of a live session.

        The call is not repeated once it may have taken effect.
        """
        return await self._call(_calls.UPDATE_SESSION, request, deadline)

    async def import_sessions(
        self, request: proto.ImportSessionsRequest, *, deadline: float | None = None
    ) -> proto.ImportSessionsResponse:
        """Takes over live sessions of another system."""
        return await self._call(_calls.IMPORT_SESSIONS, request, deadline)

    async def validate(
        self, request: proto.ValidateRequest, *, deadline: float | None = None
    ) -> proto.ValidateResponse:
        """Checks whether an access token is active.

        A `Verifier` has a simpler answer, and can do it without a call.
        """
        return await self._call(_calls.VALIDATE, request, deadline)

    async def batch_validate(
        self, request: proto.BatchValidateRequest, *, deadline: float | None = None
    ) -> proto.BatchValidateResponse:
        """Validates up to 256 tokens in one call."""
        return await self._call(_calls.BATCH_VALIDATE, request, deadline)

    async def revoke(
        self, request: proto.RevokeRequest, *, deadline: float | None = None
    ) -> proto.RevokeResponse:
        """Ends sessions, or makes a single access token inactive.

        Once this has returned, no replica and no watcher accepts a revoked token any more.
        """
        return await self._call(_calls.REVOKE, request, deadline)

    async def list_revocations(
        self, request: proto.ListRevocationsRequest, *, deadline: float | None = None
    ) -> proto.ListRevocationsResponse:
        """Lists revocations of many sessions."""
        return await self._call(_calls.LIST_REVOCATIONS, request, deadline)

    async def get_session(
        self, request: proto.GetSessionRequest, *, deadline: float | None = None
    ) -> proto.GetSessionResponse:
        """Returns one session."""
        return await self._call(_calls.GET_SESSION, request, deadline)

    async def list_sessions(
        self, request: proto.ListSessionsRequest, *, deadline: float | None = None
    ) -> proto.ListSessionsResponse:
        """Lists sessions of a tenant."""
        return await self._call(_calls.LIST_SESSIONS, request, deadline)

    async def count_sessions(
        self, request: proto.CountSessionsRequest, *, deadline: float | None = None
    ) -> proto.CountSessionsResponse:
        """Counts sessions of a tenant."""
        return await self._call(_calls.COUNT_SESSIONS, request, deadline)

    async def get_jwks(
        self, request: proto.GetJwksRequest, *, deadline: float | None = None
    ) -> proto.GetJwksResponse:
        """Returns the public keys that verify access tokens."""
        return await self._call(_calls.GET_JWKS, request, deadline)

    async def list_keys(
        self, request: proto.ListKeysRequest, *, deadline: float | None = None
    ) -> proto.ListKeysResponse:
        """Lists all keys."""
        return await self._call(_calls.LIST_KEYS, request, deadline)

    async def rotate_key(
        self, request: proto.RotateKeyRequest, *, deadline: float | None = None
    ) -> proto.RotateKeyResponse:
        """Makes the pending key active."""
        return await self._call(_calls.ROTATE_KEY, request, deadline)

    async def revoke_key(
        self, request: proto.RevokeKeyRequest, *, deadline: float | None = None
    ) -> proto.RevokeKeyResponse:
        """Revokes a key.

        Once this has returned, no replica and no watcher accepts any token of that key.
        """
        return await self._call(_calls.REVOKE_KEY, request, deadline)

    async def list_audit(
        self, request: proto.ListAuditRequest, *, deadline: float | None = None
    ) -> proto.ListAuditResponse:
        """Lists records of the audit."""
        return await self._call(_calls.LIST_AUDIT, request, deadline)

    async def _call(self, call: Call[Q, R], request: Q, deadline: float | None) -> R:
        """Makes a call, and repeats it at other replicas until its deadline."""
        attempts = Attempts(call, self._settings, self._endpoints, deadline)
        with telemetry.call_span(call.service, call.method):
            metadata = telemetry.call_metadata(self._settings.authorization)
            while True:
                replica = self._endpoints.next()
                send = self._channel(replica).unary_unary(
                    call.path,
                    request_serializer=type(request).SerializeToString,
                    response_deserializer=call.response.FromString,
                )
                try:
                    response = await send(request, timeout=attempts.remaining(), metadata=metadata)
                except grpc.aio.AioRpcError as failure:
                    error = CountersignError.from_grpc(failure)
                    delay = attempts.failed(replica, error)
                    if delay is None:
                        raise error from failure
                    await asyncio.sleep(delay)
                else:
                    attempts.succeeded(replica)
                    return response

    def _channel(self, replica: int) -> grpc.aio.Channel:
        """Returns the connection to a replica. Connections belong to the loop that opened them."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            self._channels = [_channel(self._settings, it) for it in self._settings.targets]
        return self._channels[replica]


def _channel(settings: Settings, target: str) -> grpc.aio.Channel:
    if settings.credentials is None:
        return grpc.aio.insecure_channel(target, settings.options())
    return grpc.aio.secure_channel(target, settings.credentials, settings.options())


class Verifier(BaseVerifier):
    """Verifies access tokens, for asyncio. Create it by one of the three class methods.

    A local verifier watches the service in threads of its own, so an event loop that is busy does
    not let its lease lapse.
    """

    def __init__(self, source: Source, fallback: Client | None = None) -> None:
        """Is called by the class methods."""
        super().__init__(source)
        self._fallback = fallback

    @classmethod
    def remote(cls, client: Client) -> Self:
        """Creates a verifier that calls Validate for each token.

        The caller needs the role `validator`.
        """
        return cls(Source(Mode.REMOTE), client)

    @classmethod
    def local(
        cls,
        client: Client,
        *,
        on_lapse: OnLapse = OnLapse.VALIDATE,
        cache_bytes: int = CACHE_BYTES,
        clock: Clock | None = None,
    ) -> Self:
        """Starts a verifier that watches the service, and then checks tokens by itself.

        The arguments are those of `countersign.Verifier.local`.
        """
        source = watching(SyncClient.of_settings(client.settings), cache_bytes, clock, owns=True)
        return cls(source, client if on_lapse is OnLapse.VALIDATE else None)

    @classmethod
    def local_unwatched(  # noqa: PLR0913 (They are named.)
        cls,
        client: Client,
        issuer: str,
        *,
        max_lifetime: float = 3600.0,
        leeway: float = 5.0,
        keys_valid_for: float = 3600.0,
        cache_bytes: int = CACHE_BYTES,
        clock: Clock | None = None,
    ) -> Self:
        """Starts a verifier that knows only the public keys.

        **It accepts a revoked token, and a token of a session that has ended, until the token
        expires.** The arguments are those of `countersign.Verifier.local_unwatched`.
        """
        source = fetching(
            SyncClient.of_settings(client.settings),
            issuer,
            max_lifetime=max_lifetime,
            leeway=leeway,
            keys_valid_for=keys_valid_for,
            cache_bytes=cache_bytes,
            clock=clock,
            owns=True,
        )
        return cls(source)

    async def verify(self, token: str, demands: Demands | None = None) -> Answer:
        """Checks a token, and whether it meets the demands.

        In the modes that verify locally this calls the service only if there is no lease.
        """
        asked = demands if demands is not None else Demands()
        answer: Answer | None = self._answer_locally(token, asked)
        if answer is None:
            answer = await self._fall_back(token, asked)
        self._count(answer)
        return answer

    async def _fall_back(self, token: str, demands: Demands) -> Answer:
        if self._fallback is None:
            return NO_LEASE
        refused = refuse_unasked(token)
        if refused is not None:
            return refused
        try:
            return read_answer(await self._fallback.validate(demands.request(token)))
        except CountersignError as error:
            return not_answered(error)

    async def ready(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        """Waits until the verifier can answer by its own copy, at most for so many seconds.

        Returns whether it can. Returns at once in the mode `Mode.REMOTE`.
        """
        local = self._source.local
        if local is None:
            return True
        loop = asyncio.get_running_loop()
        leased = asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(leased.set)

        stop = local.on_lease(wake)
        try:
            async with asyncio.timeout(timeout):
                while not local.is_ready():
                    leased.clear()
                    if not local.is_ready():
                        await leased.wait()
        except TimeoutError:
            return local.is_ready()
        finally:
            stop()
        return True

    async def close(self) -> None:
        """Ends the background threads. Without a lease, the verifier knows nothing any more."""
        await asyncio.to_thread(self._source.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
