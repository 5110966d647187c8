"""Options that several commands share, and what they make: settings, and a client."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from agentmem.config import Settings, load_settings
from agentmem.errors import ConfigError, InvalidInput
from agentmem.types import Fidelity, Policy, Prefill

if TYPE_CHECKING:  # grpc takes a tenth of a second to load; `config show` and `--help` do without
    from agentmem_client import AgentMem

CONFIG_FILE = Path("agentmem.toml")

SessionId = Annotated[str, typer.Argument(metavar="SESSION", help="The session's id.")]
Target = Annotated[str, typer.Option("--target", envvar="AGENTMEM_TARGET", help="HOST:PORT of the server.")]
Token = Annotated[str, typer.Option("--token", envvar="AGENTMEM_TOKEN", help="Bearer token.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Config = Annotated[
    Path | None, typer.Option("--config", envvar="AGENTMEM_CONFIG", metavar="FILE", help="Settings; ./agentmem.toml where there is one.")
]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, e.g. memory.kv_bytes=2GiB. Repeatable.")]
Labels = Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Repeatable.")]

PolicyTexts = Annotated[
    list[str] | None,
    typer.Option("--policy", metavar="KEY=VALUE", help="How the memory of a new session is kept, e.g. keep=0.25. Repeatable."),
]

DEFAULT_TARGET = "127.0.0.1:7070"


def pairs(texts: list[str] | None) -> dict[str, str]:
    """Return KEY=VALUE texts as a dict. Raises InvalidInput for a text without ``=``."""
    split = [text.partition("=") for text in texts or ()]
    for key, equals, _ in split:
        if not key or not equals:
            raise InvalidInput(f"{key!r} is not KEY=VALUE")
    return {key: value for key, _, value in split}


_BOOLS = {"true": True, "false": False}
_WORDS: dict[object, str] = {
    bool: ", ".join(_BOOLS),
    int: "a whole number",
    float: "a number",
    Fidelity: ", ".join(Fidelity),
    Prefill: ", ".join(Prefill),
}


def policy(texts: list[str] | None) -> Policy:
    """Return the policy that KEY=VALUE texts describe. Raises InvalidInput for an unknown key and a value that is not allowed."""
    kinds, values = get_type_hints(Policy), dict[str, Any]()
    for key, text in pairs(texts).items():
        if key not in kinds:
            raise InvalidInput(f"policy has no {key!r}; allowed: {', '.join(kinds)}")
        try:
            values[key] = _BOOLS[text] if kinds[key] is bool else kinds[key](text)
        except (KeyError, ValueError) as error:
            raise InvalidInput(f"policy.{key} is {text!r}; allowed: {_WORDS[kinds[key]]}") from error
    return Policy(**values)


def config_file(given: Path | None) -> Path | None:
    """Return the settings file: the one given, else ./agentmem.toml where there is one."""
    return given or (CONFIG_FILE if CONFIG_FILE.is_file() else None)


def settings_from(config: Path | None, env: dict[str, str], sets: list[str] | None, flags: dict[str, object]) -> Settings:
    """Return the settings; a flag of its own wins over the same key in ``--set``. Raises ConfigError."""
    return load_settings(config_file(config), env, overrides(sets, flags))


def overrides(sets: list[str] | None, flags: dict[str, object]) -> dict[str, object]:
    """Return what the command line sets, flags over ``--set``. Raises ConfigError for a ``--set`` without ``=``."""
    try:
        given: dict[str, object] = {**pairs(sets)}
    except InvalidInput as error:
        raise ConfigError(f"--set {error.message}") from error
    return given | {key: value for key, value in flags.items() if value is not None}


def connect(target: str, token: str) -> AgentMem:
    """Return a client that gives up on a server that is not there after a second or two."""
    from agentmem_client import AgentMem, RetryPolicy

    return AgentMem(target, token=token, retry=RetryPolicy(attempts=4))
