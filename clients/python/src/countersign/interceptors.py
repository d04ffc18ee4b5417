"""Interceptors for servers of gRPC, with and without asyncio.

The session of a call is in the context of its handler, where `current_session` finds it.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextvars import ContextVar, copy_context
from typing import Any, Final, NoReturn, TypeAlias, cast

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as Detail
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from countersign import aio
from countersign._challenge import Denial, DenialKind
from countersign._credential import Missing, find
from countersign._http import judge
from countersign.demands import Demands
from countersign.reasons import InactiveReason
from countersign.session import Session
from countersign.verifier import Verifier

__all__ = ["AioServerInterceptor", "ServerInterceptor", "current_session"]

_DOMAIN: Final = "countersign"
_DETAILS: Final = "grpc-status-details-bin"
_RETRY_MS: Final = 500
_session: ContextVar[Session | None] = ContextVar("countersign_session", default=None)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Found: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


def current_session() -> Session | None:
    """Returns the session of the call that is being handled; `None` if the method is public."""
    return _session.get()


class _Methods:
    """The demands on the methods of a server."""

    def __init__(
        self, demands: Demands, methods: Mapping[str, Demands | None] | None = None
    ) -> None:
        self._demands = demands
        self._methods = dict(methods or {})

    def demands_of(self, path: str) -> Demands | None:
        """Returns the demands on a method; `None` if it is public."""
        return self._methods.get(path, self._demands)


def _find(metadata: Any) -> str | Denial:  # noqa: ANN401 (Its type differs between the servers.)
    values = [
        value.encode() if isinstance(value, str) else bytes(value)
        for name, value in metadata or ()
        if name == "authorization"
    ]
    found = find(values, (), None)
    if isinstance(found, str):
        return found
    kind = DenialKind.NO_TOKEN if found is Missing.NONE else DenialKind.SEVERAL_TOKENS
    return Denial(kind)


def _status(denial: Denial, demands: Demands) -> tuple[grpc.StatusCode, str, bytes]:
    """Returns the code, the message and the details of a denial."""
    code = grpc.StatusCode.UNAUTHENTICATED
    match denial.kind:
        case DenialKind.NO_TOKEN:
            reason = "NO_TOKEN"
        case DenialKind.UNKNOWN:
            code, reason = grpc.StatusCode.UNAVAILABLE, "TOKEN_NOT_CHECKED"
        case DenialKind.INACTIVE if denial.reason is not None:
            reason = denial.reason.name
            if denial.reason is InactiveReason.INSUFFICIENT_SCOPE:
                code = grpc.StatusCode.PERMISSION_DENIED
        case _:
            reason = "SEVERAL_TOKENS"
    message = denial.description(demands)
    details = [ErrorInfo(reason=reason, domain=_DOMAIN, metadata=dict(denial.unmet(demands)))]
    if denial.kind is DenialKind.UNKNOWN:
        delay = Duration()
        delay.FromMilliseconds(_RETRY_MS)
        details.append(RetryInfo(retry_delay=delay))
    status = Status(code=code.value[0], message=message)
    for detail in details:
        packed = Detail()
        packed.Pack(detail)
        status.details.append(packed)
    return code, message, status.SerializeToString()


class ServerInterceptor(grpc.ServerInterceptor):
    """Lets only calls pass whose access token is active and meets the demands of the method.

    The token is in the metadata `authorization`, with the scheme `Bearer`. A stream is checked when
    it begins. Other calls are answered, with an `ErrorInfo` whose domain is `countersign`:

    | the call | the code | the reason |
    |---|---|---|
    | has no token, or several | UNAUTHENTICATED | `NO_TOKEN`, `SEVERAL_TOKENS` |
    | has an inactive token | UNAUTHENTICATED | the name of the `InactiveReason`, such as `EXPIRED` |
    | needs a stronger authentication | UNAUTHENTICATED | `STEP_UP_REQUIRED`, with `acr_values` and `max_age` in the metadata |
    | lacks a scope | PERMISSION_DENIED | `INSUFFICIENT_SCOPE`, with `scope` in the metadata |
    | cannot be checked now | UNAVAILABLE | `TOKEN_NOT_CHECKED`, with `RetryInfo` |
    """  # noqa: E501 (It is a table.)

    def __init__(
        self,
        verifier: Verifier,
        demands: Demands,
        methods: Mapping[str, Demands | None] | None = None,
    ) -> None:
        """Creates an interceptor.

        Args:
            verifier: The verifier.
            demands: The demands on all methods.
            methods: The methods with other demands, such as `/shop.v1.Orders/Cancel`. One with
                `None` is public, such as `/grpc.health.v1.Health/Check`.
        """
        self._verifier = verifier
        self._methods = _Methods(demands, methods)

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Found],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Found:
        """Is called by the server."""
        handler = continuation(handler_call_details)
        demands = self._methods.demands_of(handler_call_details.method)
        if handler is None or demands is None:
            return handler

        def check(context: grpc.ServicerContext) -> Session:
            checked: Session | Denial
            found = _find(context.invocation_metadata())
            checked = (
                judge(self._verifier.verify(found, demands)) if isinstance(found, str) else found
            )
            if isinstance(checked, Denial):
                _abort(context, checked, demands)
            return checked

        return _wrap(handler, check)


def _abort(context: grpc.ServicerContext, denial: Denial, demands: Demands) -> NoReturn:
    code, message, details = _status(denial, demands)
    context.set_trailing_metadata(((_DETAILS, details),))
    context.abort(code, message)
    raise AssertionError("a call goes on after its end")


def _wrap(handler: Any, check: Callable[[grpc.ServicerContext], Session]) -> Handler:  # noqa: ANN401
    """Checks each call before its handler runs, in a context that has the session."""
    inner = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )

    def respond(request: Any, context: grpc.ServicerContext) -> Any:  # noqa: ANN401
        session = check(context)
        run = copy_context()
        run.run(_session.set, session)
        return run.run(inner, request, context)

    def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: ANN401
        session = check(context)
        run = copy_context()
        run.run(_session.set, session)
        responses = iter(run.run(inner, request, context))
        end = object()
        while (response := run.run(next, responses, end)) is not end:
            yield response

    return _with_behavior(handler, stream if handler.response_streaming else respond)


def _with_behavior(handler: Any, behavior: Any) -> Handler:  # noqa: ANN401
    makers: dict[tuple[bool, bool], Any] = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    make = makers[handler.request_streaming, handler.response_streaming]
    made = make(
        behavior,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
    return cast("Handler", made)


class AioServerInterceptor(grpc.aio.ServerInterceptor):
    """The same as `ServerInterceptor`, for servers of `grpc.aio`."""

    def __init__(
        self,
        verifier: aio.Verifier,
        demands: Demands,
        methods: Mapping[str, Demands | None] | None = None,
    ) -> None:
        """Creates an interceptor. The arguments are those of `ServerInterceptor`."""
        self._verifier = verifier
        self._methods = _Methods(demands, methods)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Found]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Found:
        """Is called by the server."""
        handler = await continuation(handler_call_details)
        demands = self._methods.demands_of(handler_call_details.method)
        if handler is None or demands is None:
            return handler

        async def check(context: Any) -> None:  # noqa: ANN401
            checked: Session | Denial
            found = _find(context.invocation_metadata())
            if isinstance(found, str):
                checked = judge(await self._verifier.verify(found, demands))
            else:
                checked = found
            if isinstance(checked, Denial):
                code, message, details = _status(checked, demands)
                await context.abort(code, message, ((_DETAILS, details),))
                raise AssertionError("a call goes on after its end")  # noqa: TRY004
            # Each call is handled by a task of its own.
            _session.set(checked)

        return _wrap_aio(handler, check)


def _wrap_aio(handler: Any, check: Callable[[Any], Awaitable[None]]) -> Handler:  # noqa: ANN401
    inner = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )

    async def respond(request: Any, context: Any) -> Any:  # noqa: ANN401
        await check(context)
        return await inner(request, context)

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: ANN401
        await check(context)
        responses = inner(request, context)
        # A handler may also be a coroutine that writes responses by its context.
        if hasattr(responses, "__aiter__"):
            async for response in responses:
                yield response
        else:
            await responses

    return _with_behavior(handler, stream if handler.response_streaming else respond)
