"""Recall on the real model: what was said in one of eight turns is found when it is asked for."""

from __future__ import annotations

import heapq
import textwrap
from pathlib import Path

import pytest
from support.replica import TENANT, Replica, running

from agentmem.engine.model import ModelHandle, load_model
from agentmem.engine.resolve import resolve
from agentmem.types import Fidelity, Message, TurnInput
from agentmem.views import RecalledSpan

FACTS = (
    ("The wifi password of the cabin is heron-4471.", "What is the wifi password of the cabin?", "4471"),
    ("My sister Clara will land in Lisbon on Tuesday evening.", "When does Clara land in Lisbon?", "Clara"),
    ("The database migration failed because the users table has no index on email.", "Why did the migration fail?", "migration"),
    ("Please remember that the cat gets two spoons of the grey food every morning.", "How much does the cat get to eat?", "spoons"),
    ("The invoice from the plumber was 340 euros and is due in March.", "How much was the plumber's invoice?", "340"),
    ("I parked the car on level B7 next to the yellow pillar.", "Where did I park the car?", "B7"),
    ("The meeting with the architects moved to the green room upstairs.", "Where is the meeting with the architects?", "architects"),
    ("Our son's teacher is called Mr. Okonkwo and teaches geometry.", "Who is the teacher of our son?", "Okonkwo"),
)
ASKED = (0, 3, 5, 6)
FILLER = textwrap.wrap(heapq.__about__, 300)
REPLY = Message("assistant", "I have noted that and will keep it in mind.")


@pytest.fixture(scope="module")
def smollm2(models: Path) -> ModelHandle:
    """Return the real model, in fp32."""
    return load_model(str(resolve("smollm2", models)), dtype="fp32", device="cpu", cache_dir=models, threads=1)


async def tell(replica: Replica) -> None:
    """Tell a fact in the middle of each of eight turns."""
    await replica.create(system="You are a helpful assistant.")
    for (fact, _, _), filler in zip(FACTS, FILLER, strict=False):
        said = Message("user", f"{filler[:150]} {fact} {filler[150:]}")
        await replica.manager.append(TENANT, "a", TurnInput(messages=(said, REPLY)), request_id=None)
        await replica.manager.end_turn(TENANT, "a", waiting_on_tool=False, eta_seconds=0.0)


def assert_found(spans: list[RecalledSpan], index: int) -> None:
    """Check that the heaviest span is the fact ``index``, and that spans are what they promise to be."""
    assert (index + 1, True) == (spans[0].turn_index, FACTS[index][2] in spans[0].text), spans
    assert 5 >= len(spans) >= 3
    assert 1 >= sum(span.weight for span in spans)
    assert [span.weight for span in spans] == sorted((span.weight for span in spans), reverse=True)


async def test_a_fact_is_found_in_its_turn(smollm2: ModelHandle, tmp_path: Path) -> None:
    """The turn and the words of a fact come first when it is asked for: from the device, and as compressed memory from the archive."""
    async with running(tmp_path, model=smollm2, memory__kv_bytes="512MiB", memory__block_tokens=64) as replica:
        await tell(replica)
        before = await replica.manager.seal(TENANT, "a")
        for index in ASKED:
            assert_found(list(await replica.manager.recall(TENANT, "a", FACTS[index][1], 5)), index)
        assert before.n_tokens == (await replica.manager.get(TENANT, "a")).n_tokens

        await replica.manager.set_fidelity(TENANT, "a", Fidelity.RECALL)
        await replica.spill()
        assert_found(list(await replica.manager.recall(TENANT, "a", FACTS[ASKED[1]][1], 5)), ASKED[1])
        _, turns = await replica.manager.inspect(TENANT, "a", attention=True)
        assert 1.0 == pytest.approx(sum(turn.attention or 0.0 for turn in turns), abs=1e-4)
