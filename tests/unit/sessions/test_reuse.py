"""Invariant 11: the reply says what was reused, and why the rest was not. Invariant 1: what is lost is computed, never guessed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.replica import BLOCK, TENANT, Answer, Replica, greedy, tiny_model

from agentmem.errors import ModelMismatch
from agentmem.types import Fingerprint, Message, MissReason, ReuseReport, TurnInput

SYSTEM = "s" * 60


def counts(reuse: ReuseReport) -> tuple[int, int, int]:
    """Return tokens from the device, from disk, computed."""
    assert (0, 0) == (reuse.host, reuse.peer)
    return reuse.device, reuse.disk, reuse.computed


async def ask(replica: Replica, name: str = "a", text: str = "next") -> Answer:
    """Ask, check that the reply is exact, that the report adds up and that start, finish and ledger agree."""
    answer = await replica.ask(name, text, 6)
    reuse = answer.finish.reuse
    assert greedy(tuple(replica.tokens(name)[: -len(answer.token_ids)]), 6) == answer.token_ids
    assert answer.start.context_tokens == sum(counts(reuse))
    assert answer.start.reuse == reuse == replica.session(name).turns[-1].reuse
    return answer


async def stored(replica: Replica) -> int:
    """Have a session with two turns, on disk and not on the device; return its whole blocks' tokens."""
    await replica.create(system=SYSTEM)
    await ask(replica, text="first")
    await ask(replica, text="second")
    await replica.settle()  # so that no seal job reads a block before the test does
    await replica.restart()
    await replica.manager.get(TENANT, "a")
    return len(replica.tokens()) // BLOCK * BLOCK


async def test_new(replica: Replica) -> None:
    """A session that nobody has seen is computed whole."""
    await replica.create(system=SYSTEM)
    answer = await ask(replica)
    assert (0, 0, answer.start.context_tokens) == counts(answer.start.reuse)
    assert (MissReason.NEW, "") == (answer.start.reuse.reason, answer.start.reuse.detail)


async def test_none(replica: Replica) -> None:
    """A session on the device computes what is new and the last reply's last token."""
    await replica.create(system=SYSTEM)
    await ask(replica)
    before = len(replica.tokens())
    answer = await ask(replica)
    assert (before - 1, 0, answer.start.context_tokens - before + 1) == counts(answer.start.reuse)
    assert MissReason.NONE == answer.start.reuse.reason


async def test_shared_prefix(replica: Replica) -> None:
    """A second session with the same system prompt reads its whole blocks from the device."""
    await replica.create(system=SYSTEM)
    await replica.create("b", system=SYSTEM)
    await ask(replica)
    shared = len(replica.session("b").chain) // BLOCK * BLOCK
    answer = await ask(replica, "b", "other")
    assert shared == answer.start.reuse.device >= 64
    assert MissReason.NONE == answer.start.reuse.reason


async def test_partial_block(replica: Replica) -> None:
    """After a restart the whole blocks come from disk and the rest of the history is computed: it filled no block."""
    whole = await stored(replica)
    had = len(replica.tokens()) - 1
    answer = await ask(replica)
    assert (0, whole, answer.start.context_tokens - whole) == counts(answer.start.reuse)
    assert (MissReason.PARTIAL_BLOCK, f"{had - whole} tokens after the last full block") == (
        answer.start.reuse.reason,
        answer.start.reuse.detail,
    )


async def test_spilled_sessions_come_back_from_disk(replica: Replica) -> None:
    """Spilling drops K and V; the next turn reads them back."""
    await replica.create(system=SYSTEM)
    await ask(replica)
    await replica.spill()
    assert 0 == (await replica.manager.get(TENANT, "a")).device_tokens
    assert (await ask(replica)).start.reuse.disk > 0


async def test_host_tier(replica: Replica) -> None:
    """With host memory blocks come back from there, and the report says so."""
    await replica.core.close(1.0)
    replica.overrides["memory__host_bytes"] = "8MiB"
    replica.open()
    await replica.create(system=SYSTEM)
    await replica.ask("a", "first")
    await replica.spill()
    answer = await replica.ask("a", "second")
    assert (0, 0) == (answer.start.reuse.device, answer.start.reuse.disk)
    assert answer.start.reuse.host >= 64


@pytest.mark.parametrize(
    ("damage", "reason"),
    [("delete", MissReason.MISSING), ("truncate", MissReason.CORRUPT), ("flip", MissReason.CORRUPT), ("swap", MissReason.CORRUPT)],
)
async def test_damaged_blocks_are_computed_and_written_again(replica: Replica, damage: str, reason: MissReason) -> None:
    """A file that is gone, cut, altered or another block's is not attended to; the report says so; the next commit replaces it."""
    await stored(replica)
    file = replica.block_file("a", 2)
    data = file.read_bytes()
    if damage == "delete":
        file.unlink()
    elif damage == "truncate":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        file.write_bytes(replica.block_file("a", 3).read_bytes())
    answer = await ask(replica)

    assert (0, 2 * BLOCK) == counts(answer.start.reuse)[:2]
    assert reason == answer.start.reuse.reason
    assert len(data) == file.stat().st_size
    await replica.restart()
    again = await ask(replica)
    assert MissReason.PARTIAL_BLOCK == again.start.reuse.reason


async def test_evicted(replica: Replica) -> None:
    """Blocks that the quota pushed out are reported as evicted, computed, and archived again."""
    await stored(replica)
    victims = replica.session().chain.hashes[1:]
    replica.core.ledger.drop_blocks(victims)
    for index in range(1, len(victims) + 1):
        replica.block_file("a", index).unlink()
    await replica.restart()
    answer = await ask(replica)

    assert (0, BLOCK) == counts(answer.start.reuse)[:2]
    assert MissReason.EVICTED == answer.start.reuse.reason
    await replica.restart()
    assert MissReason.PARTIAL_BLOCK == (await ask(replica)).start.reuse.reason


async def test_without_an_archive_everything_is_computed(replica: Replica) -> None:
    """With kv_archive off a restart costs time, never content."""
    await replica.core.close(1.0)
    replica.overrides["storage__kv_archive"] = False
    replica.open()
    await replica.create(system=SYSTEM)
    await ask(replica)
    await replica.restart()
    answer = await ask(replica)
    assert (0, 0, answer.start.context_tokens) == counts(answer.start.reuse)
    assert (MissReason.EVICTED, "from token 0 on") == (answer.start.reuse.reason, answer.start.reuse.detail)
    assert [] == list(replica.state.rglob("*.safetensors"))


@pytest.mark.parametrize(("part", "reason"), [("template", MissReason.TEMPLATE_CHANGED), ("weights", MissReason.MODEL_CHANGED)])
async def test_another_fingerprint(replica: Replica, part: str, reason: MissReason) -> None:
    """Blocks of another template or other weights are not read; the report names which; the session lives on under the new one."""
    await stored(replica)
    model = tiny_model()
    parts = replace(model.parts, **{part: "0123456789abcdef"})
    other = replace(model, parts=parts, fingerprint=parts.combined())
    await replica.restart(other)
    before = await replica.manager.get(TENANT, "a")
    answer = await ask(replica)

    assert (0, 0, answer.start.context_tokens) == counts(answer.start.reuse)
    assert reason == answer.start.reuse.reason
    assert model.fingerprint in answer.start.reuse.detail
    assert other.fingerprint == before.record.fingerprint
    await replica.restart(other)
    assert MissReason.PARTIAL_BLOCK == (await ask(replica)).start.reuse.reason


async def test_another_tokenizer_is_refused(replica: Replica) -> None:
    """Where token ids mean something else a session can be listed and deleted, nothing more."""
    await stored(replica)
    model = tiny_model()
    parts = replace(model.parts, tokenizer="another")
    await replica.restart(replace(model, parts=parts, fingerprint=Fingerprint("other.model")))

    with pytest.raises(ModelMismatch, match="tokenizer"):
        await replica.ask("a", "x")
    assert 1 == len((await replica.manager.list(TENANT, labels={}, page_size=5, page_token=""))[0])
    assert 3 == (await replica.manager.delete(TENANT, "a")).turns


@pytest.mark.parametrize("changed", [0, 2])
async def test_history_changed(replica: Replica, changed: int) -> None:
    """A resent history that differs goes on in a fork that shares what is equal; the report names the message."""
    await replica.create(system=SYSTEM)
    await ask(replica, text="first")
    await ask(replica, text="second")
    history = replica.session().messages
    sent = [*history[:changed], Message("user", "different")]
    answer = await replica.ask("a", TurnInput(messages=tuple(sent), full_history=True), 6)

    fork = answer.start.session_id
    kept = replica.session().length_at(changed // 2)
    assert fork != "a"
    assert (MissReason.HISTORY_CHANGED, f"content of message {changed}") == (answer.start.reuse.reason, answer.start.reuse.detail)
    assert kept - (changed > 0) <= answer.start.reuse.device <= kept
    assert greedy(tuple(replica.tokens(fork)[: -len(answer.token_ids)]), 6) == answer.token_ids
    assert history == replica.session().messages


async def test_rollback_keeps_what_it_kept(replica: Replica) -> None:
    """After a rollback and a restart the blocks of the turns that stayed are still on disk."""
    await replica.create(system=SYSTEM)
    await ask(replica, text="first " * 10)
    await ask(replica, text="second")
    await replica.manager.rollback(TENANT, "a", to_turn=1)
    await replica.restart()
    answer = await ask(replica)
    assert replica.session().length_at(1) // BLOCK * BLOCK == answer.start.reuse.disk


async def test_a_fork_keeps_its_blocks_when_the_source_goes(replica: Replica) -> None:
    """The fork refers to the blocks of its turns itself, so deleting the source takes nothing from it."""
    await replica.create(system=SYSTEM)
    await ask(replica, text="first " * 10)
    await ask(replica, text="second")
    await replica.manager.fork(TENANT, "a", at_turn=1, new_id="b", labels=None)
    await replica.manager.delete(TENANT, "a")
    await replica.restart()
    answer = await ask(replica, "b")
    assert replica.session("b").length_at(1) // BLOCK * BLOCK == answer.start.reuse.disk


async def test_counters_add_up(replica: Replica) -> None:
    """The replica's counters are the sums of its replies' reports."""
    await replica.create(system=SYSTEM)
    answers = [await ask(replica), await ask(replica)]
    await replica.spill()
    answers.append(await ask(replica))
    stats = replica.manager.stats()
    assert sum(answer.start.reuse.device for answer in answers) == stats.tokens_from_device
    assert sum(answer.start.reuse.disk for answer in answers) == stats.tokens_from_disk
    assert sum(len(answer.token_ids) for answer in answers) == stats.tokens_generated
