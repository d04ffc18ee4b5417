"""The replicas of the service: their addresses, and which of them gets the next call."""

import itertools
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from countersign.errors import BuildError

_log = logging.getLogger("countersign")

AVOIDED_FOR: Final = 2.0
"""The seconds for which a replica that has failed gets no calls if another one can get them."""
# The largest answer that is read. The service limits its answers itself
# (`limits.max_answer_bytes`, 4 MiB by default).
_MAX_ANSWER_BYTES: Final = 64 << 20
_PORTS: Final = {"https": 443, "http": 80}
_LOCAL: Final = {"localhost", "127.0.0.1", "::1"}

ChannelOptions = Sequence[tuple[str, str | int]]


@dataclass(frozen=True, slots=True, repr=False)
class Settings:
    """The settings of a client."""

    targets: tuple[str, ...]
    credentials: grpc.ChannelCredentials | None
    authorization: str | None
    server_name: str | None
    connect_timeout: float
    deadline: float
    revocation_deadline: float

    def options(self) -> ChannelOptions:
        """Returns the options of connections."""
        connect_ms = max(1, round(self.connect_timeout * 1000))
        options: list[tuple[str, str | int]] = [
            # The service answers pings at any rate. A connection that has died unnoticed is
            # replaced within 15 s.
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 5_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.max_receive_message_length", _MAX_ANSWER_BYTES),
            # Calls are repeated by this library, at another replica.
            ("grpc.enable_retries", 0),
            # The longest time for an attempt to connect has this name.
            ("grpc.min_reconnect_backoff_ms", connect_ms),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", max(1000, connect_ms)),
            # Proxies that the environment names are for other traffic.
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if self.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.server_name))
        return options


def read_settings(  # noqa: PLR0913
    endpoints: str | Sequence[str],
    *,
    api_key: str | None,
    ca_certificate: bytes | None,
    client_certificate: tuple[bytes, bytes] | None,
    server_name: str | None,
    deadline: float,
    revocation_deadline: float,
    connect_timeout: float,
) -> Settings:
    """Reads settings. Raises `BuildError` if they cannot be used."""
    urls = [endpoints] if isinstance(endpoints, str) else list(endpoints)
    if not urls:
        raise BuildError("no endpoint is given: name at least one, such as http://127.0.0.1:50051")
    has_certificates = ca_certificate is not None or client_certificate is not None
    targets, is_encrypted = [], False
    for url in urls:
        target, host, is_encrypted = _target(url)
        if has_certificates and not is_encrypted:
            raise BuildError(
                f"{url} is not encrypted, so the certificates would not be used: use https://"
            )
        if api_key is not None and not is_encrypted and host not in _LOCAL:
            _log.warning("the API key is sent to %s without encryption: use https://", url)
        targets.append((target, is_encrypted))
    if len({encrypted for _, encrypted in targets}) > 1:
        raise BuildError("some endpoints are encrypted and others are not")
    for name, seconds in (("deadline", deadline), ("revocation_deadline", revocation_deadline)):
        if seconds <= 0:
            raise BuildError(f"{name} must be greater than zero")
    return Settings(
        targets=tuple(target for target, _ in targets),
        credentials=_credentials(ca_certificate, client_certificate) if is_encrypted else None,
        authorization=None if api_key is None else _authorization(api_key),
        server_name=server_name,
        connect_timeout=connect_timeout,
        deadline=deadline,
        revocation_deadline=revocation_deadline,
    )


def _target(url: str) -> tuple[str, str, bool]:
    """Returns the address of an endpoint, its host, and whether it is encrypted."""
    wrong = f"{url!r} is not the URL of an endpoint, such as https://sessions.example:50051"
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        raise BuildError(wrong) from None
    usual = _PORTS.get(parts.scheme)
    # Python strips some of these, or lets them pass.
    if any(letter <= " " or letter == "\x7f" for letter in url):
        raise BuildError(wrong)
    has_more = parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc
    if usual is None or not host or has_more:
        raise BuildError(wrong)
    address = f"[{host}]" if ":" in host else host
    return f"{address}:{port or usual}", host, parts.scheme == "https"


def _credentials(ca: bytes | None, identity: tuple[bytes, bytes] | None) -> grpc.ChannelCredentials:
    """Makes the credentials of connections. gRPC would notice wrong ones at the first call only."""
    certificate, key = identity if identity is not None else (None, None)
    try:
        for pem in (ca, certificate):
            if pem is not None:
                x509.load_pem_x509_certificates(pem)
        if key is not None:
            load_pem_private_key(key, password=None)
    except (TypeError, ValueError):
        raise BuildError("the certificates cannot be used: they are not in PEM") from None
    return grpc.ssl_channel_credentials(ca, key, certificate)


def _authorization(api_key: str) -> str:
    if not all(" " < letter <= "~" for letter in api_key):
        raise BuildError("the API key has characters that cannot be sent")
    return f"Bearer {api_key}"


class Endpoints:
    """Decides which replica gets the next call. Calls go to one after the other.

    gRPC can balance calls by itself, but then a repetition may go to the replica that has just
    failed.
    """

    def __init__(self, count: int) -> None:
        """Creates the state of this number of replicas."""
        self._count = count
        self._next = itertools.count()
        self._avoided_until = [0.0] * count

    def __len__(self) -> int:
        return self._count

    def next(self) -> int:
        """Returns the replica that gets the next call: if possible one that has not failed."""
        first = next(self._next)
        now = time.monotonic()
        rotated = [(first + number) % self._count for number in range(self._count)]
        return next((it for it in rotated if self._avoided_until[it] <= now), rotated[0])

    def avoid(self, replica: int) -> None:
        """Prefers other replicas for a while, because this one has failed."""
        self._avoided_until[replica] = time.monotonic() + AVOIDED_FOR

    def trust(self, replica: int) -> None:
        """Prefers a replica no less than others, because it has answered."""
        self._avoided_until[replica] = 0.0
