"""Middleware and decorators for Django.

```python
# settings.py
MIDDLEWARE = ["countersign.django.CountersignMiddleware", ...]
COUNTERSIGN = {
    "VERIFIER": "shop.sessions.verifier",  # a Verifier, or a function that returns one
    "DEMANDS": Demands(audience="https://orders.example"),
    "COOKIE": "access_token",  # optional
    "REALM": "https://orders.example",  # optional
}
```

The middleware protects all views but those that are marked as `public` or `optional`. `protect`
makes further demands for a view.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils.module_loading import import_string

from countersign._challenge import Denial
from countersign._http import Guard, judge
from countersign.answer import Answer
from countersign.demands import Demands
from countersign.session import Session
from countersign.verifier import Verifier
from countersign.wsgi import find

__all__ = ["CountersignMiddleware", "get_session", "optional", "protect", "public"]

_SESSION: Final = "countersign_session"
_ACCESS: Final = "countersign_access"
_PUBLIC: Final = "public"
_OPTIONAL: Final = "optional"

View = TypeVar("View", bound=Callable[..., Any])


def get_session(request: HttpRequest) -> Session | None:
    """Returns the session of a request, if it has one.

    It has nothing to do with `request.session`, which is that of Django.
    """
    session = getattr(request, _SESSION, None)
    return session if isinstance(session, Session) else None


@functools.cache
def _verifier_of(value: object) -> Verifier:
    found = import_string(value) if isinstance(value, str) else value
    verifier = found if isinstance(found, Verifier) or not callable(found) else found()
    if not isinstance(verifier, Verifier):
        raise ImproperlyConfigured("COUNTERSIGN['VERIFIER'] must be a countersign.Verifier")
    return verifier


def _verifier() -> Verifier:
    # It is made in the process that uses it, with its first request.
    return _verifier_of(_setting("VERIFIER"))


def _setting(name: str) -> Any:  # noqa: ANN401
    values = getattr(settings, "COUNTERSIGN", None)
    if not isinstance(values, dict) or not isinstance(values.get("DEMANDS"), Demands):
        raise ImproperlyConfigured("COUNTERSIGN must have a VERIFIER, and DEMANDS")
    return values.get(name)


def _guard(demands: Demands | None, *, is_optional: bool) -> Guard:
    asked = _setting("DEMANDS") if demands is None else demands
    return Guard(asked, _setting("COOKIE"), _setting("REALM"), is_optional)


def _finish(
    request: HttpRequest, guard: Guard, checked: Session | Denial | None
) -> HttpResponse | None:
    """Notes the session of a request that may pass, and otherwise returns the answer."""
    setattr(request, _SESSION, None)
    if isinstance(checked, Denial):
        denied = guard.deny(checked)
        response = HttpResponse(denied.body, status=denied.status)
        for name, value in denied.headers:
            response.headers[name] = value
        return response
    setattr(request, _SESSION, checked)
    return None


def _check(request: HttpRequest, guard: Guard) -> HttpResponse | None:
    found = find(guard, request.META)
    if not isinstance(found, str):
        return _finish(request, guard, found)
    return _finish(request, guard, judge(_verifier().verify(found, guard.demands)))


async def _check_async(request: HttpRequest, guard: Guard) -> HttpResponse | None:
    found = find(guard, request.META)
    if not isinstance(found, str):
        return _finish(request, guard, found)
    verifier = _verifier()
    # A check that calls the service must not hold up the event loop.
    answer: Answer | None = verifier.try_locally(found, guard.demands)
    if answer is None:
        answer = await asyncio.to_thread(verifier.verify, found, guard.demands)
    return _finish(request, guard, judge(answer))


class CountersignMiddleware:
    """Lets only requests pass whose access token is active and meets `COUNTERSIGN["DEMANDS"]`.

    The answers to other requests are those of `countersign.asgi.Protect`. `get_session` returns the
    session of a request. It works for synchronous and asynchronous views.
    """

    sync_capable = True
    async_capable = True

    def __init__(
        self,
        get_response: Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]],
    ) -> None:
        """Is called by Django when the server starts. Raises `ImproperlyConfigured`."""
        self._get_response = get_response
        self._guards = {
            access: _guard(None, is_optional=access == _OPTIONAL) for access in (None, _OPTIONAL)
        }
        if _setting("VERIFIER") is None:
            raise ImproperlyConfigured("COUNTERSIGN must have a VERIFIER, and DEMANDS")
        self.process_view: Callable[..., Any] = self._process_view
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)
            self.process_view = self._process_view_async

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        """Handles a request. `process_view` checks it, once its view is known."""
        return self._get_response(request)

    def _access(self, view: object) -> str | None:
        access = getattr(view, _ACCESS, None)
        return access if access in (_PUBLIC, _OPTIONAL) else None

    def _process_view(
        self, request: HttpRequest, view: object, *_arguments: object
    ) -> HttpResponse | None:
        access = self._access(view)
        return None if access == _PUBLIC else _check(request, self._guards[access])

    async def _process_view_async(
        self, request: HttpRequest, view: object, *_arguments: object
    ) -> HttpResponse | None:
        access = self._access(view)
        return None if access == _PUBLIC else await _check_async(request, self._guards[access])


def public(view: View) -> View:
    """Marks a view that the middleware does not protect. It gets no session."""
    setattr(view, _ACCESS, _PUBLIC)
    return view


def optional(view: View) -> View:
    """Marks a view that also gets requests without a token; they have no session."""
    setattr(view, _ACCESS, _OPTIONAL)
    return view


def protect(demands: Demands | None = None) -> Callable[[View], View]:
    """Makes demands on the requests of a view; without any, those of `COUNTERSIGN["DEMANDS"]`.

    It checks the request itself, so it also works without the middleware. For a view that is a
    class, use `@method_decorator(protect(...), name="dispatch")`.
    """

    def decorate(view: View) -> View:
        if iscoroutinefunction(view):

            @functools.wraps(view)
            async def checked_async(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
                denied = await _check_async(request, _guard(demands, is_optional=False))
                return await view(request, *args, **kwargs) if denied is None else denied

            return checked_async  # type: ignore[return-value] # It has the type of the view.

        @functools.wraps(view)
        def checked(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            denied = _check(request, _guard(demands, is_optional=False))
            return view(request, *args, **kwargs) if denied is None else denied

        return checked  # type: ignore[return-value] # It has the type of the view.

    return decorate
