"""Settings: defaults < ``agentmem.toml`` < ``AGENTMEM_SECTION_KEY`` < flags.

Every key is ``section.name`` (``server.port``); an unknown one is an error that names the nearest known one. Values from
every source go through the same parser, chosen by the field's type, and through the section's own checks.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_type_hints

from agentmem.errors import ConfigError
from agentmem.units import GIB, MIB, Bytes, parse_size

AutoBytes = Bytes | Literal["auto"]
LOOPBACK = ("127.0.0.1", "::1", "localhost")
ENV_PREFIX = "AGENTMEM_"
ENV_ALIASES = {"AGENTMEM_API_KEYS": "server.api_keys"}
# Read elsewhere: by faults.py and by the command line's client commands.
ENV_ELSEWHERE = ("AGENTMEM_FAULTS", "AGENTMEM_CONFIG", "AGENTMEM_TARGET", "AGENTMEM_TOKEN")


def _check(key: str, ok: bool, value: object, allowed: str) -> None:
    if not ok:
        raise ConfigError(f"{key} is {value!r}; allowed: {allowed}")


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Which model is served. ``threads`` 0: torch's default; ``max_context`` 0: the model's trained length, in tokens.

    ``draft``: a smaller model with the same tokenizer that proposes tokens for verification; "" for none.
    """

    id: str = "smollm2"
    dtype: str = "auto"
    device: str = "auto"
    cache_dir: Path = field(default_factory=lambda: Path("~/.cache/agentmem/models").expanduser())
    threads: int = 0
    max_context: int = 0
    draft: str = ""

    def __post_init__(self) -> None:
        """Raise ConfigError naming the key, its value and what is allowed."""
        _check("model.id", bool(self.id), self.id, "a hub id, a directory, a GGUF file or smollm2")
        dtypes = ("auto", "fp32", "bf16", "fp16")
        _check("model.dtype", self.dtype in dtypes, self.dtype, ", ".join(dtypes))
        _check("model.device", self.device in ("auto", "cpu", "cuda"), self.device, "auto, cpu, cuda")
        _check("model.threads", self.threads >= 0, self.threads, "0 (torch's default) or more")
        _check("model.max_context", self.max_context >= 0, self.max_context, "0 (the model's trained length) or more tokens")


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The gRPC server. Ports: 0 is any free one for ``port``, off for ``metrics_port``.

    ``api_keys`` is a file of lines ``token tenant``; without it only loopback may be served. ``resume_seconds`` is how long a
    finished or detached reply is kept in memory for its request id.
    """

    host: str = "127.0.0.1"
    port: int = 7070
    api_keys: str = ""
    max_concurrent_streams: int = 1000
    max_message_bytes: Bytes = Bytes(64 * MIB)
    drain_seconds: float = 10.0
    default_deadline_seconds: float = 600.0
    metrics_port: int = 0
    resume_seconds: float = 60.0

    def __post_init__(self) -> None:
        """Raise ConfigError naming the key, its value and what is allowed."""
        guarded = bool(self.api_keys) or self.host in LOOPBACK
        _check("server.host", guarded, self.host, f"{', '.join(LOOPBACK)} unless server.api_keys names a file of tokens")
        for name in ("port", "metrics_port"):
            port = getattr(self, name)
            _check(f"server.{name}", 0 <= port <= 65535, port, "0 to 65535")
        _check("server.max_concurrent_streams", self.max_concurrent_streams >= 1, self.max_concurrent_streams, "1 or more")
        fits = 1024 <= self.max_message_bytes < 2**31
        _check("server.max_message_bytes", fits, self.max_message_bytes, "1KiB to below 2GiB")
        _check("server.drain_seconds", _finite(self.drain_seconds), self.drain_seconds, "0 or more seconds")
        deadline = self.default_deadline_seconds
        _check("server.default_deadline_seconds", _finite(deadline) and deadline > 0, deadline, "above 0 seconds")
        _check("server.resume_seconds", _finite(self.resume_seconds), self.resume_seconds, "0 or more seconds")


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """Budgets of the engine. ``kv_bytes`` bounds K and V on the device, ``host_bytes`` the host tier.

    ``session_share`` is the share of ``kv_bytes`` up to which a session of fidelity AUTO stays exact.
    ``max_batch_tokens`` is the prefill budget of one step, ``max_running`` and ``max_queue`` count requests.
    """

    kv_bytes: AutoBytes = "auto"
    host_bytes: Bytes = Bytes(0)
    session_share: float = 0.5
    block_tokens: int = 64
    max_batch_tokens: int = 512
    max_running: int = 64
    max_queue: int = 256

    def __post_init__(self) -> None:
        """Raise ConfigError naming the key, its value and what is allowed."""
        fits = self.kv_bytes == "auto" or self.kv_bytes >= MIB
        _check("memory.kv_bytes", fits, self.kv_bytes, "auto, or 1MiB or more")
        _check("memory.host_bytes", self.host_bytes >= 0, self.host_bytes, "0 (off) or more")
        share = self.session_share
        _check("memory.session_share", _finite(share) and 0 < share <= 1, share, "above 0, up to 1")
        _check("memory.block_tokens", 1 <= self.block_tokens <= 1024, self.block_tokens, "1 to 1024 tokens")
        for name in ("max_batch_tokens", "max_running", "max_queue"):
            count = getattr(self, name)
            _check(f"memory.{name}", count >= 1, count, "1 or more")


@dataclass(frozen=True, slots=True)
class StorageSettings:
    """What is kept on disk. ``disk_bytes`` is the quota of blocks; the ledger of turns is never evicted.

    ``archive_format`` is how K and V lie there: as they are, or at 8 or 4 bits, from which no session is restored exactly.
    ``kv_archive`` False keeps the ledger only, so that a restart recomputes. ``sweep`` removes orphans at start-up.
    ``reap_seconds`` is the pause between two searches for expired sessions.
    """

    state_dir: Path = field(default_factory=lambda: Path("~/.local/share/agentmem").expanduser())
    disk_bytes: Bytes = Bytes(20 * GIB)
    archive_format: str = "native"
    kv_archive: bool = True
    sweep: bool = True
    reap_seconds: float = 5.0

    def __post_init__(self) -> None:
        """Raise ConfigError naming the key, its value and what is allowed."""
        _check("storage.disk_bytes", self.disk_bytes >= 0, self.disk_bytes, "0 or more")
        formats = ("native", "int8", "int4")
        _check("storage.archive_format", self.archive_format in formats, self.archive_format, ", ".join(formats))
        reap = self.reap_seconds
        _check("storage.reap_seconds", _finite(reap) and reap > 0, reap, "above 0 seconds")


@dataclass(frozen=True, slots=True)
class WorkersSettings:
    """Where finished turns are compressed and indexed. ``executor``: a name in ``agentmem_workers.port.executors``.

    ``threads`` is for the local executor. A seal job whose worker says nothing for ``lease_seconds`` goes to another; one that has
    failed ``max_attempts`` times is parked.
    """

    executor: str = "local"
    threads: int = 1
    lease_seconds: float = 30.0
    max_attempts: int = 3

    def __post_init__(self) -> None:
        """Raise ConfigError naming the key, its value and what is allowed."""
        _check("workers.executor", bool(self.executor), self.executor, "local, process")
        _check("workers.threads", 1 <= self.threads <= 256, self.threads, "1 to 256")
        lease = self.lease_seconds
        _check("workers.lease_seconds", _finite(lease) and lease > 0, lease, "above 0 seconds")
        _check("workers.max_attempts", self.max_attempts >= 1, self.max_attempts, "1 or more")


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What the server writes to stderr. ``prompt_text`` True allows text of prompts and replies in the log."""

    level: str = "info"
    format: str = "text"
    prompt_text: bool = False

    def __post_init__(self) -> None:
        """Raise ConfigError naming the key, its value and what is allowed."""
        levels = ("debug", "info", "warning", "error")
        _check("log.level", self.level in levels, self.level, ", ".join(levels))
        _check("log.format", self.format in ("text", "json"), self.format, "text, json")


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set, by section."""

    model: ModelSettings = field(default_factory=ModelSettings)
    server: ServerSettings = field(default_factory=ServerSettings)
    memory: MemorySettings = field(default_factory=MemorySettings)
    storage: StorageSettings = field(default_factory=StorageSettings)
    workers: WorkersSettings = field(default_factory=WorkersSettings)
    log: LogSettings = field(default_factory=LogSettings)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Return section -> name -> value, with paths as text: ready for JSON."""
        return {
            section: {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
            for section, values in asdict(self).items()
        }


class Given(NamedTuple):
    """A value that some source set, before parsing, and the source's name for messages."""

    value: object
    source: str


def load_settings(file: Path | None, env: Mapping[str, str], overrides: Mapping[str, object]) -> Settings:
    """Return the settings that ``file``, ``env`` and ``overrides`` (``{"server.port": 7071}``; None: not given) lead to.

    Raises ConfigError for a file that cannot be read, an unknown key and a value that is not allowed.
    """
    given = gather(file, env, overrides)
    sections = {}
    for name, cls in _SECTIONS.items():
        hints = get_type_hints(cls)
        values = {
            key.partition(".")[2]: _parse(key, hints[key.partition(".")[2]], entry)
            for key, entry in given.items()
            if key.startswith(name + ".")
        }
        sections[name] = cls(**values)
    return Settings(**sections)


def gather(file: Path | None, env: Mapping[str, str], overrides: Mapping[str, object]) -> dict[str, Given]:
    """Return what each source says, the later source winning; keys that nothing sets are left out. Raises ConfigError."""
    given: dict[str, Given] = {}
    for key, value in _read_file(file).items() if file else ():
        given[_known(key, str(file))] = Given(value, str(file))
    for name, value in env.items():
        if name.startswith(ENV_PREFIX) and name not in ENV_ELSEWHERE:
            given[_key_of_env(name)] = Given(value, name)
    for key, value in overrides.items():
        if value is not None:
            given[_known(key, "a flag")] = Given(value, "flag")
    return given


_SECTIONS: dict[str, Callable[..., Any]] = {
    "model": ModelSettings,
    "server": ServerSettings,
    "memory": MemorySettings,
    "storage": StorageSettings,
    "workers": WorkersSettings,
    "log": LogSettings,
}
KEYS: tuple[str, ...] = tuple(f"{section}.{item.name}" for section, cls in _SECTIONS.items() for item in fields(cls))  # type: ignore[arg-type]


def _read_file(file: Path) -> dict[str, object]:
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"settings file {file} cannot be read: {error.strerror}") from error
    except ValueError as error:  # TOML and UTF-8 errors
        raise ConfigError(f"settings file {file} is not valid TOML: {error}") from error
    flat: dict[str, object] = {}
    for section, body in document.items():
        if isinstance(body, dict):
            flat |= {f"{section}.{name}": value for name, value in body.items()}
        else:
            flat[section] = body
    return flat


def _nearest(word: str, known: tuple[str, ...]) -> str:
    return difflib.get_close_matches(word, known, n=1, cutoff=0.0)[0]


def _known(key: str, source: str) -> str:
    if key not in KEYS:
        raise ConfigError(f"unknown setting {key!r} in {source}; did you mean {_nearest(key, KEYS)!r}?")
    return key


def _key_of_env(name: str) -> str:
    names = {ENV_PREFIX + key.replace(".", "_").upper(): key for key in KEYS} | ENV_ALIASES
    if name not in names:
        raise ConfigError(f"unknown setting {name} in the environment; did you mean {_nearest(name, tuple(names))}?")
    return names[name]


def _finite(seconds: float) -> bool:
    return math.isfinite(seconds) and seconds >= 0


def _parse(key: str, kind: object, given: Given) -> object:
    try:
        return _PARSERS[kind](given.value)
    except (TypeError, ValueError, ConfigError) as error:
        raise ConfigError(f"{key} = {given.value!r} (from {given.source}): {error}") from error


def _parse_int(value: object) -> int:
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return int(value)
    raise TypeError("not a whole number")


def _parse_float(value: object) -> float:
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return float(value)
    raise TypeError("not a number")


def _parse_bool(value: object) -> bool:
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    word = str(value).lower()
    if word not in words:
        raise ValueError("not true or false")
    return words[word]


def _parse_str(value: object) -> str:
    if isinstance(value, (str, Path)):
        return str(value)
    raise TypeError("not a text")


def _parse_bytes(value: object) -> Bytes:
    return parse_size(value if isinstance(value, int) else _parse_str(value))


_PARSERS: dict[object, Callable[[object], object]] = {
    int: _parse_int,
    float: _parse_float,
    bool: _parse_bool,
    str: _parse_str,
    Path: lambda value: Path(_parse_str(value)).expanduser(),
    Bytes: _parse_bytes,
    AutoBytes: lambda value: "auto" if value == "auto" else _parse_bytes(value),
}
