"""What makes two models the same model: hashes of config, weights, dtype, tokenizer and chat template.

K and V computed under one fingerprint are never attended to under another, so everything that changes what a token id means or
what K and V come out of it takes part, and nothing else does: not the path, the machine, the device, or the library's version.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3
from transformers import PreTrainedTokenizerBase

from agentmem.types import Fingerprint

log = logging.getLogger(__name__)

WHOLE_BYTES = 2 * 2**30  # up to here every byte of the weights is hashed
SAMPLES = 256
SAMPLE_BYTES = 64 * 2**10
HEAD_BYTES = 2**20
MAX_HEADER_BYTES = 100 * 2**20  # what the safetensors format allows
VOLATILE_CONFIG_KEYS = frozenset(
    {
        "_model_name_or_path",
        "_name_or_path",
        "dtype",  # the dtype that the weights are used in is a part of its own
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)


@dataclass(frozen=True, slots=True)
class FingerprintParts:
    """The five hashes (hex, dtype as its name) behind a fingerprint, kept apart because each means something of its own."""

    config: str
    weights: str
    dtype: str
    tokenizer: str
    template: str

    def combined(self) -> Fingerprint:
        """Return the model's identity, ``model.template``: 40 hex digits for what K and V depend on, 16 for the chat template."""
        *model, template = astuple(self)
        return Fingerprint(f"{hash_json(model)[:40]}.{template[:16]}")


def hash_json(value: object) -> str:
    """Return blake3 (hex) of ``value`` as canonical JSON: keys sorted, no spaces. Tuples count as lists."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return blake3(text.encode()).hexdigest()


def config_hash(config: Mapping[str, Any]) -> str:
    """Return the hash of a parsed ``config.json``.

    The file is hashed, not the library's config object, so that a newer transformers with more default keys stays the same
    model. ``VOLATILE_CONFIG_KEYS`` don't take part.
    """
    return hash_json({key: value for key, value in config.items() if key not in VOLATILE_CONFIG_KEYS})


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the hash of all that maps text to ids: the serialised fast tokenizer, or class and vocabulary, and the special tokens.

    Truncation and padding are left out: they are state that a call leaves behind.
    """
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        return hash_json([{key: value for key, value in state.items() if key not in ("truncation", "padding")}, special])
    return hash_json([type(tokenizer).__name__, tokenizer.get_vocab(), special])


def template_hash(template: str | Mapping[str, str] | None) -> str:
    """Return the hash of a chat template: one text, several by name, or none."""
    return hash_json(template)


def weights_hash(files: Sequence[Path], cache_dir: Path) -> str:
    """Return the hash of the names, sizes and contents of weight files, whatever their order.

    Up to ``WHOLE_BYTES`` in total every byte is read; above, each file's header and ``SAMPLES`` chunks spread evenly over it.
    The sampled hash sees any training run, but not an edit that touches only bytes between the samples, such as one patched
    row. Raises OSError when a file can't be read.
    """
    whole = sum(path.stat().st_size for path in files) <= WHOLE_BYTES
    rows = [(path.name, path.stat().st_size, file_hash(path, cache_dir, whole=whole)) for path in files]
    return hash_json(sorted(rows))


def file_hash(path: Path, cache_dir: Path, *, whole: bool) -> str:
    """Return the hash of one file, remembered in ``cache_dir/digests`` under its path, size and mtime.

    An edit in place that keeps both size and mtime (in ns) is not seen. Safe to call from several processes at once. Raises
    OSError when the file can't be read; a cache that can't be written only costs hashing again.
    """
    path = path.resolve()
    stat = path.stat()
    known = {"path": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "whole": whole}
    sidecar = cache_dir / "digests" / f"{hash_json(known)[:32]}.json"
    digest = _read_sidecar(sidecar, known)
    if digest is None:
        digest = _whole_hash(path) if whole else _sampled_hash(path, stat.st_size)
        _write_sidecar(sidecar, known | {"digest": digest})
    return digest


def _whole_hash(path: Path) -> str:
    hasher = blake3(max_threads=blake3.AUTO)
    hasher.update_mmap(path)
    return hasher.hexdigest()


def _sampled_hash(path: Path, size: int) -> str:
    hasher = blake3(size.to_bytes(8, "little"))
    with path.open("rb") as file:
        head = HEAD_BYTES
        if path.suffix == ".safetensors":
            head = 8 + min(int.from_bytes(file.read(8), "little"), MAX_HEADER_BYTES)
            file.seek(0)
        hasher.update(file.read(head))
        last = max(size - SAMPLE_BYTES, 0)
        for index in range(SAMPLES):
            file.seek(last * index // (SAMPLES - 1))
            hasher.update(file.read(SAMPLE_BYTES))
    return hasher.hexdigest()


def _read_sidecar(sidecar: Path, known: Mapping[str, Any]) -> str | None:
    try:
        row = json.loads(sidecar.read_bytes())
    except (OSError, ValueError):  # absent or torn: both mean hashing again
        return None
    if not isinstance(row, dict) or any(row.get(key) != value for key, value in known.items()):
        return None
    digest = row.get("digest")
    return digest if isinstance(digest, str) else None


def _write_sidecar(sidecar: Path, row: Mapping[str, Any]) -> None:
    try:
        sidecar.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=sidecar.parent, prefix=".tmp-")
    except OSError as error:
        log.info("hash of %s is not remembered: %s", row["path"], error)
        return
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(row, file)
        os.replace(name, sidecar)  # noqa: PTH105 (atomic against readers; no fsync: a lost sidecar is recomputed)
    except OSError as error:
        log.info("hash of %s is not remembered: %s", row["path"], error)
        with contextlib.suppress(OSError):
            os.unlink(name)  # noqa: PTH108
