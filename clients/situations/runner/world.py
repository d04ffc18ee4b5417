"""What the situations share: two services, certificates, and API keys."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import grpc

from runner.certificates import Authority
from runner.services import Issuer, Service, new_api_key

_OPEN = """
[policies.brief]
access_token_ttl = '1s'
"""


@dataclass(frozen=True)
class World:
    """Two services, one of them with TLS and callers, which nobody stops."""

    program: Path
    folder: Path
    open: Service
    issuer: Issuer
    secure: Service
    secure_issuer: Issuer
    secure_url: str
    keys: dict[str, str]
    """The API keys of the secure service, by the names of the callers."""
    ca: Path
    other_ca: Path
    identity: tuple[Path, Path]
    """The certificate of a caller of the secure service, and its private key."""
    stranger: tuple[Path, Path]
    """A certificate of the other authority, and its private key."""
    named: grpc.ServerCredentials
    """Those of a server whose certificate is for sessions.example."""
    mutual: grpc.ServerCredentials
    """Those of a server that demands a client certificate."""
    numbers: "itertools.count[int]"

    def new_folder(self) -> Path:
        """Returns a folder that does not exist yet."""
        return self.folder / f"service-{next(self.numbers)}"

    async def close(self) -> None:
        """Ends the services."""
        await self.issuer.close()
        await self.secure_issuer.close()
        await self.open.kill()
        await self.secure.kill()


async def build(program: Path, folder: Path) -> World:
    """Starts the services."""
    ca, other_ca = Authority(folder, "ca"), Authority(folder, "other-ca")
    certificate, key = ca.issue("server", "localhost", "127.0.0.1")
    elsewhere = ca.issue("elsewhere", "sessions.example")
    keys, callers = await _callers(program)
    settings = (
        f"{callers}[tls]\ncertificate_file = '{certificate}'\nprivate_key_file = '{key}'\n"
        f"client_ca_file = '{ca.file}'\n"
    )
    open_service = Service(program, folder / "open", _OPEN)
    secure = Service(program, folder / "secure", settings)
    for service in (open_service, secure):
        await service.start()
    roots = grpc.ssl_channel_credentials(ca.file.read_bytes())
    return World(
        program=program,
        folder=folder,
        open=open_service,
        issuer=Issuer(grpc.aio.insecure_channel(open_service.address)),
        secure=secure,
        secure_issuer=Issuer(grpc.aio.secure_channel(secure.address, roots), keys["login"]),
        secure_url=f"https://{secure.address}",
        keys=keys,
        ca=ca.file,
        other_ca=other_ca.file,
        identity=ca.issue("shop", "shop.test"),
        stranger=other_ca.issue("stranger", "shop.test"),
        named=_credentials(elsewhere),
        mutual=_credentials((certificate, key), ca.file),
        numbers=itertools.count(),
    )


async def _callers(program: Path) -> tuple[dict[str, str], str]:
    """Returns the API keys of callers, and their configuration."""
    keys, tables = {}, ""
    for name, settings in (
        ("login", "roles = ['issuer', 'validator', 'revoker']"),
        ("checker", "roles = ['validator']"),
        ("writer", "roles = ['issuer']"),
        ("acme", "roles = ['validator']\ntenants = ['acme']"),
    ):
        keys[name], hashed = await new_api_key(program)
        tables += f"[[callers]]\nname = '{name}'\nkey_hashes = ['{hashed}']\n{settings}\n"
    tables += (
        "[[callers]]\nname = 'shop'\ncertificate_names = ['dns:shop.test']\nroles = ['validator']\n"
    )
    return keys, tables


def _credentials(identity: tuple[Path, Path], ca: Path | None = None) -> grpc.ServerCredentials:
    certificate, key = (it.read_bytes() for it in identity)
    roots = None if ca is None else ca.read_bytes()
    pairs = [(key, certificate)]
    return grpc.ssl_server_credentials(pairs, roots, require_client_auth=ca is not None)
