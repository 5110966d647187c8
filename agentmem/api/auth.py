"""Bearer tokens: which tenant a call belongs to. Health checks need no token, since kubelets have none; reflection does."""

from __future__ import annotations

import hashlib
import hmac
import logging
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from agentmem.api.call import NOBODY, Call, Context
from agentmem.errors import ConfigError, Unauthenticated
from agentmem.types import TenantId

log = logging.getLogger(__name__)

DEFAULT_TENANT = TenantId("default")
_EXEMPT = "/grpc.health.v1.Health/"


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom a token stands for. ``admin`` may read the server's numbers and drain it."""

    tenant: TenantId
    admin: bool = False


class KeyFile:
    """The tokens of a file of lines ``token tenant`` or ``token tenant admin``; ``#`` begins a comment line.

    Only SHA-256 digests are kept in memory. Raises ConfigError naming the file and the line.
    """

    def __init__(self, path: Path) -> None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            mode = path.stat().st_mode
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"server.api_keys {path} cannot be read: {error}") from error
        if mode & stat.S_IROTH:
            log.warning("server.api_keys %s is readable by everybody; chmod 600 it", path)
        self._identities: dict[bytes, Identity] = {}
        for number, line in enumerate(lines, 1):
            if line.strip() and not line.lstrip().startswith("#"):
                self._add(line.split(), f"server.api_keys {path} line {number}")
        if not self._identities:
            raise ConfigError(f"server.api_keys {path} holds no `token tenant` line, so nobody could call")

    def _add(self, words: list[str], where: str) -> None:
        if len(words) not in (2, 3) or words[2:] not in ([], ["admin"]):
            raise ConfigError(f"{where} has {len(words)} words; allowed: `token tenant` or `token tenant admin`")
        digest = _digest(words[0])
        if digest in self._identities:
            raise ConfigError(f"{where} repeats the token of an earlier line")
        self._identities[digest] = Identity(TenantId(words[1]), admin=len(words) == 3)

    def identify(self, token: str) -> Identity | None:
        """Return whom ``token`` stands for, or None. Takes the same time wherever a token stands in the file."""
        digest = _digest(token)
        found = None
        for known, identity in self._identities.items():
            if hmac.compare_digest(known, digest):
                found = identity
        return found


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


class Authenticate:
    """The stage that finds out whose a call is. Without a key file everybody is the default tenant, and admin."""

    def __init__(self, keys: KeyFile | None) -> None:
        self._keys = keys

    @asynccontextmanager
    async def around(self, call: Call, context: Context) -> AsyncIterator[None]:
        """Fill in the call's tenant. Raises Unauthenticated."""
        identity = self._identity(call, context)
        call.tenant, call.admin = identity.tenant, identity.admin
        yield

    def _identity(self, call: Call, context: Context) -> Identity:
        if self._keys is None:
            return Identity(DEFAULT_TENANT, admin=True)
        if call.method.startswith(_EXEMPT):
            return Identity(NOBODY)
        header = next((value for key, value in context.invocation_metadata() or () if key == "authorization"), "")
        scheme, _, token = str(header).partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Unauthenticated("the call carries no token; send metadata `authorization: Bearer TOKEN`")
        identity = self._keys.identify(token.strip())
        if identity is None:
            raise Unauthenticated("the token is not one of this server's")
        return identity
