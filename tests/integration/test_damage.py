"""Invariant 1 with real files: a damaged block is never attended to, it is named, computed again and archived again."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
from support.conversation import BLOCK, SYSTEM, Heard, ask, assert_restored, tokens_and_replies
from support.judge import Judge
from support.server import Server

from agentmem.stores.format import encode
from agentmem.stores.ledger import Ledger
from agentmem.stores.records import BlockFile, BlockHeader
from agentmem.types import BlockHash, MissReason, SessionId, TenantId

TENANT = TenantId("default")


def truncate(path: Path, _other: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path, _other: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path, _other: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def delete(path: Path, _other: Path) -> None:
    path.unlink()


def swap(path: Path, other: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(data)


def randomize(path: Path, _other: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


def of_another_dtype(path: Path, _other: Path) -> None:
    """Leave what a server with another dtype would have written under this name, sound in itself."""
    with safetensors.safe_open(path, "pt") as file:
        said, k, v = file.metadata(), file.get_tensor("k"), file.get_tensor("v")
    text = ("fingerprint", "dtype", "rope")
    values: dict[str, Any] = {f.name: said[f.name] if f.name in text else int(said[f.name]) for f in fields(BlockHeader)}
    header = replace(BlockHeader(**values), dtype="bfloat16", fingerprint="another model's")
    path.write_bytes(encode(BlockFile(BlockHash(bytes.fromhex(path.stem)), header, k.bfloat16(), v.bfloat16())))


DAMAGES: dict[str, tuple[Callable[[Path, Path], None], MissReason]] = {
    "truncated": (truncate, MissReason.CORRUPT),
    "empty": (empty, MissReason.CORRUPT),
    "flipped": (flip, MissReason.CORRUPT),
    "deleted": (delete, MissReason.MISSING),
    "swapped": (swap, MissReason.CORRUPT),
    "random": (randomize, MissReason.CORRUPT),
    "dtype": (of_another_dtype, MissReason.MODEL_CHANGED),
}


def system_of(name: str) -> str:
    """Return a system prompt that shares no block with the others and fills more than one."""
    return f"{name}. {SYSTEM[:400]}"


def block_paths(server: Server, session_id: str) -> list[Path]:
    """Return the files of a session's blocks in the order of its tokens. The server must be stopped."""
    ledger = Ledger(server.state_dir / "meta.sqlite")
    try:
        hashes = {block for _, block, _ in ledger.session_blocks(TENANT, SessionId(session_id))}
        rows = sorted((row for h in hashes if (row := ledger.block_row(h)) is not None), key=lambda row: row.position)
    finally:
        ledger.close()
    return [server.state_dir / "blocks" / row.hash.hex()[:2] / f"{row.hash.hex()}.safetensors" for row in rows]


def assert_recomputed(heard: Heard, kept: int, reason: MissReason) -> None:
    """Check that ``kept`` tokens were read from disk, all others computed, and why."""
    assert heard.error is None
    assert heard.start is not None
    reuse = heard.start.reuse
    assert (reason, 0, kept) == (reuse.reason, reuse.device, reuse.disk), reuse.detail
    assert heard.start.context_tokens - kept == reuse.computed


@pytest.mark.timeout(280)
async def test_damaged_blocks_are_refused_explained_and_replaced(launch: Callable[..., Server], judge: Judge) -> None:
    """Whatever happened to the second block's file, the first is read, the rest computed, the reply exact, and the file whole again."""
    server = launch().start()
    async with server.client() as client:
        for name in DAMAGES:
            async with client.session(name, system=system_of(name)) as session:
                assert (await ask(session, 1)).acknowledged
    assert 0 == server.stop()
    damaged = {name: block_paths(server, name) for name in DAMAGES}
    for name, (damage, _) in DAMAGES.items():
        assert len(damaged[name]) >= 3
        damage(damaged[name][1], damaged[name][2])
    server.start()
    async with server.client() as client:
        for name, (_, reason) in DAMAGES.items():
            heard = await ask(client.attach(name), 2)
            assert_recomputed(heard, BLOCK, reason)
            assert judge.first_wrong(*await tokens_and_replies(client.attach(name))) is None, name
    quarantined = {path.name.partition("-")[2] for path in (server.state_dir / "quarantine").iterdir()}
    assert {damaged[name][1].name for name in DAMAGES if name != "deleted"} <= quarantined
    server.kill()
    server.check_state()
    server.start()
    async with server.client() as client:
        for name in DAMAGES:
            assert_restored(await ask(client.attach(name), 3))


@pytest.mark.timeout(280)
async def test_blocks_of_one_dtype_are_never_read_by_another(launch: Callable[..., Server], judge: Judge) -> None:
    """A server started with bf16 computes anew and says MODEL_CHANGED; back in fp32, the fp32 blocks serve again, exactly."""
    server = launch().start()
    async with server.client() as client, client.session("s", system=SYSTEM) as session:
        first = await ask(session, 1)
    assert first.start is not None
    server.stop()
    server.start(settings={"model.dtype": "bf16"})
    async with server.client() as client:
        assert_recomputed(await ask(client.attach("s"), 2), 0, MissReason.MODEL_CHANGED)
    server.stop()
    server.start(settings={"model.dtype": "fp32"})
    async with server.client() as client:
        session = client.attach("s")
        heard = await ask(session, 3)
        ids, replies = await tokens_and_replies(session)
    known = first.start.context_tokens + len(first.tokens) - 1
    assert_recomputed(heard, known // BLOCK * BLOCK, MissReason.MODEL_CHANGED)
    assert judge.first_wrong(ids, [replies[0], replies[2]]) is None
