"""A GGUF file becomes a directory of safetensors, once, under the cache directory.

Weights are dequantised to fp32, four bytes a parameter: the file's exact values, whatever dtype a later run asks for, so that the
weights' identity depends on the file alone. The directory appears by one rename after everything in it is on disk; a conversion
that dies leaves only a ``.tmp-`` directory, which the next one removes. An flock makes a second process wait instead of
converting the same file again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as hf_logging

from agentmem.engine.fingerprint import WHOLE_BYTES, file_hash, hash_json
from agentmem.engine.support import check_config
from agentmem.errors import InvalidInput, StorageFailed

Progress = Callable[[str, float], None]

CONVERSION = 1  # raise when the conversion's output changes
MAGIC = b"GGUF"
STAGE = "converting GGUF"
UNREADABLE = (ValueError, KeyError, IndexError, RuntimeError, struct.error)  # what the readers raise on bad bytes


def convert_gguf(path: Path, cache_dir: Path, progress: Progress | None = None) -> Path:
    """Return the directory with the safetensors form of the GGUF file ``path``, converting it on first use.

    ``progress`` is called with a stage and a fraction from 0 to 1 while converting. Safe to call from several processes at once.
    Raises InvalidInput when the file can't be read as GGUF, UnsupportedModel when its architecture can't be served, StorageFailed when
    ``cache_dir`` can't be written.
    """
    _check_magic(path)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        identity = file_hash(path, cache_dir, whole=path.stat().st_size <= WHOLE_BYTES)
        key = hash_json(["gguf", CONVERSION, identity])[:32]
        final = cache_dir / key
        if not final.is_dir():
            with _locked(cache_dir / f"{key}.lock"):
                _convert_under_lock(path, final, progress or (lambda _stage, _fraction: None))
    except OSError as error:
        raise StorageFailed(f"converting {path} into {cache_dir} failed: {error}") from error
    return final


def _check_magic(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
    except OSError as error:
        raise InvalidInput(f"GGUF file {path} can't be read: {error.strerror}") from error
    if magic != MAGIC:
        raise InvalidInput(f"{path} is not a GGUF file: it starts with {magic!r}, not {MAGIC!r}")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes; the kernel releases it when the holder dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _convert_under_lock(path: Path, final: Path, progress: Progress) -> None:
    if final.is_dir():  # another process converted it while this one waited
        return
    prefix = f"{final.name}.tmp-"
    for stale in final.parent.glob(f"{prefix}*"):  # the lock is ours, so their makers are dead
        shutil.rmtree(stale)
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=final.parent))
    try:
        _write_safetensors(path, work, progress)
        _sync(work)
        work.rename(final)
        _sync_directory(final.parent)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    progress(STAGE, 1.0)


def _write_safetensors(path: Path, target: Path, progress: Progress) -> None:
    """Write config, tokenizer, generation config and fp32 weights of ``path`` into ``target``."""
    source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    progress(STAGE, 0.0)
    try:
        config = AutoConfig.from_pretrained(**source)
        check_config(config)
        progress(STAGE, 0.05)
        AutoTokenizer.from_pretrained(**source).save_pretrained(target)
        progress(STAGE, 0.2)
        with quiet_bars():
            loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    except ImportError as error:
        raise InvalidInput("reading GGUF needs the packages gguf and accelerate: pip install 'agentmem-kv[gguf]'") from error
    except UNREADABLE as error:
        raise InvalidInput(f"GGUF file {path} can't be read, it is damaged or of an unknown architecture: {error!r}") from error
    progress(STAGE, 0.8)
    # save_pretrained is refused on a model that was read from GGUF, so its weights move into a fresh one
    with torch.device("meta"):
        fresh = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    fresh.load_state_dict(loaded.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.config.dtype = torch.float32
    fresh.generation_config = loaded.generation_config
    with quiet_bars():
        fresh.save_pretrained(target)
    progress(STAGE, 0.95)


@contextlib.contextmanager
def quiet_bars() -> Iterator[None]:
    """Silence transformers' own progress bars, which would fight with the caller's, and put them back after."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _sync(directory: Path) -> None:
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _sync_directory(directory)


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
