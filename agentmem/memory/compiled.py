"""Compiled kernels that outlive the process: compiling takes seconds at every start, reading what was compiled a hundredth of that.

numba's own cache finds a function by its closure, and a closure over other compiled functions differs in every process. Here a kernel is
found by its name, the parameters it was made for, the types of its arguments, the processor, the compiler, and the text of all kernels.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import os
import pickle
import secrets
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import numba as nb
from numba.core.bytecode import FunctionIdentity
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

log = logging.getLogger(__name__)
DIRECTORY = Path("~/.cache/agentmem/kernels").expanduser()
_DIGEST_BYTES = 32

# numba tells functions of one name and type apart by a number that every process counts from 1. Code from another process would link
# to ours of the same number, made for other parameters; so every process counts from a place of its own.
FunctionIdentity._unique_ids = itertools.count(secrets.randbits(62))


def kept(*parameters: object, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator like ``numba.njit(**options)`` whose results are read from disk if any process has compiled the same before.

    ``parameters`` are all that the function takes from where it is defined, apart from what the text of the kernels says.
    """

    def keep(function: Callable[..., Any]) -> Any:
        dispatcher = nb.njit(**options)(function)
        dispatcher._cache = KernelCache((function.__module__, function.__qualname__, *map(str, parameters)))
        return dispatcher

    return keep


@functools.cache
def _sources() -> str:
    """Return a digest of the text of all kernels, which are inlined into each other, and of how they are kept."""
    digest = hashlib.sha256()
    for path in [Path(__file__), *sorted(Path(__file__).parents[1].rglob("*kernel.py"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


class KernelCache(NullCache):
    """What numba asks for the machine code of one kernel. One file for each name, types and processor, which begins with its digest."""

    def __init__(self, name: tuple[str, ...]) -> None:
        self._name = name

    def path(self, signature: object, codegen: Any) -> Path:
        """Return where the code for arguments of ``signature`` is kept."""
        what = (
            sys.implementation.cache_tag,
            llvmlite.__version__,
            nb.__version__,
            _sources(),
            self._name,
            str(signature),
            codegen.magic_tuple(),
        )
        return DIRECTORY / f"{self._name[1].split('.')[0]}-{hashlib.sha256(repr(what).encode()).hexdigest()}"

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return what was compiled, None if there is none that is whole."""
        target_context.refresh()
        path = self.path(sig, target_context.codegen())
        try:
            data = path.read_bytes()
        except OSError:
            return None
        digest, code = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        if digest != hashlib.sha256(code).digest():  # a power cut may leave a file short
            log.warning("compiled kernel %s is damaged and compiled again", path)
            return None
        return CompileResult._rebuild(target_context, *pickle.loads(code))  # type: ignore[no-untyped-call] # noqa: S301 - this user wrote it

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what was compiled; a directory that cannot be written costs the next process its time, no more."""
        path = self.path(sig, data.codegen)
        code = dumps(data._reduce())  # type: ignore[no-untyped-call]
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, temp = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(code).digest() + code)
            Path(temp).replace(path)
        except OSError as error:
            log.warning("compiled kernel %s cannot be kept: %s", path, error)
