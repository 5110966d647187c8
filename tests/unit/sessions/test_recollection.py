"""Recall and attention: what is measured is exact, nothing of it stays, and nobody is in the way."""

from __future__ import annotations

import asyncio

import pytest
import torch
from support.replica import END, EOS, OTHER, START, TENANT, Replica, byte_tokenizer, encode, reference_model, until, user
from torch import Tensor

from agentmem.chat import Chat
from agentmem.compression.recipe import SINKS
from agentmem.engine.scheduler import Limits
from agentmem.errors import ContextTooLong, NotFound, Overloaded, TemplateNotAppendable
from agentmem.memory.attention_map import POWER
from agentmem.sessions.recollection import LAST_TOKENS, MAX_QUERIES, query_of
from agentmem.types import Fidelity, Policy, Prefill, TurnInput
from agentmem.views import SessionPatch

SYSTEM = "s" * 60


async def filled(replica: Replica, name: str = "a", **fields: object) -> None:
    """Make a session with three turns."""
    await replica.create(name, system=SYSTEM, **fields)
    for text in ("the first thing that is said", "a second one with other words", "and the third, to end with"):
        await replica.ask(name, text)


def attention(tokens: list[int]) -> Tensor:
    """Return transformers' own attention, ``[layers, heads, queries, keys]``."""
    model = reference_model()
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        out = model(torch.tensor([tokens]), output_attentions=True)
    model.set_attn_implementation("sdpa")
    return torch.stack([layer[0] for layer in out.attentions])


def expected_weights(tokens: list[int], asked: str) -> Tensor:
    """Return the weights of a recall of ``asked`` as plain attention has them, ``[tokens]``."""
    opening = encode(("" if tokens[-1] == EOS else END) + f"\n{START}user\n")
    start, question = len(tokens) + len(opening), encode(asked)
    layer = attention([*tokens, *opening, *question])[:1, :, :, : len(tokens)]  # of two layers the first is the middle third
    peaks, before = (part.pow(POWER).mean(dim=(0, 1, 2)).pow(1 / POWER) for part in (layer[:, :, start:], layer[:, :, len(tokens) : start]))
    weights = (peaks - before).clamp_min(0.0)
    weights[:SINKS] = 0.0
    return weights / weights.sum()


@pytest.mark.parametrize("away", [False, True])
async def test_weights_are_those_of_plain_attention(replica: Replica, away: bool) -> None:
    """A span's weight is the sum of what transformers' own attention gives its tokens; from the device or from the archive."""
    await filled(replica)
    await replica.settle()
    tokens = replica.tokens()
    if away:
        await replica.spill()
    spans = await replica.manager.recall(TENANT, "a", "words", 1000)
    weights = expected_weights(tokens, "words")

    assert 2 < len(spans)
    for span in spans:
        within = slice(span.first_token, span.first_token + span.n_tokens)
        assert float(weights[within].sum()) == pytest.approx(span.weight, abs=1e-4)
        assert span.text == byte_tokenizer().decode(tokens[within], skip_special_tokens=True).strip()
    assert 1.0 >= sum(span.weight for span in spans) - 1e-6
    assert spans[:2] == await replica.manager.recall(TENANT, "a", "words", 2)


async def test_nothing_stays(replica: Replica) -> None:
    """A recall leaves ledger, memory and books as they were, and the next reply is exact."""
    await filled(replica)
    await replica.settle()
    before, tokens = await replica.manager.get(TENANT, "a"), replica.tokens()
    await replica.manager.recall(TENANT, "a", "words", 3)
    await replica.manager.inspect(TENANT, "a", attention=True)

    assert (before, tokens) == (await replica.manager.get(TENANT, "a"), replica.tokens())
    assert 1 == len(replica.core.engine.pool._branches)
    assert 0 == replica.core.archive.stats().held
    answer = await replica.ask("a", "next")
    assert before.device_tokens == answer.start.reuse.device


async def test_attention_by_turn(replica: Replica) -> None:
    """The shares are the mean attention of the last tokens without the sinks; they sum to 1. Without the wish nothing is measured."""
    await filled(replica)
    _, turns = await replica.manager.inspect(TENANT, "a", attention=True)
    tokens = replica.tokens()
    mean = attention(tokens)[:, :, -LAST_TOKENS:].mean(dim=(0, 1, 2))
    mean[:SINKS] = 0.0
    expected = torch.split(mean / mean.sum(), [turn.n_tokens for turn in turns])

    assert [pytest.approx(float(part.sum()), abs=1e-4) for part in expected] == [turn.attention for turn in turns]
    assert [None] * 4 == [turn.attention for turn in (await replica.manager.inspect(TENANT, "a"))[1]]


@pytest.mark.parametrize("fidelity", [Fidelity.RECALL, Fidelity.COMPACT])
async def test_compressed_memory_is_read_whole(replica: Replica, fidelity: Fidelity) -> None:
    """A session that attends to compressed memory is looked at under full attention all the same, whatever its prompts see."""
    await filled(replica)
    await replica.settle()
    whole = await replica.manager.recall(TENANT, "a", "words", 5)
    shares = [turn.attention for turn in (await replica.manager.inspect(TENANT, "a", attention=True))[1]]
    policy = Policy(fidelity=fidelity, keep=0.1, prefill=Prefill.VIEW)
    await replica.manager.set_fidelity(TENANT, "a", fidelity)
    await replica.manager.update(TENANT, "a", SessionPatch(policy=policy))
    await replica.spill()
    await replica.settle()
    assert replica.session().sealed is not None

    compact = await replica.manager.recall(TENANT, "a", "words", 5)
    assert [(span.first_token, span.text) for span in whole] == [(span.first_token, span.text) for span in compact]
    assert [span.weight for span in whole] == pytest.approx([span.weight for span in compact], abs=1e-3)
    assert shares == pytest.approx([turn.attention for turn in (await replica.manager.inspect(TENANT, "a", attention=True))[1]], abs=1e-3)


async def test_a_busy_session_answers(replica: Replica) -> None:
    """While a reply is under way a recall looks at what was there before, and the reply goes on exactly."""
    await filled(replica)
    known = await replica.manager.recall(TENANT, "a", "words", 3)
    reply = asyncio.create_task(replica.ask("a", "go on", 40))
    await until(lambda: replica.session().writer is not None)
    spans = await replica.manager.recall(TENANT, "a", "words", 3)

    assert [(span.first_token, span.text) for span in known] == [(span.first_token, span.text) for span in spans]
    assert 0 < len((await reply).token_ids)


async def test_the_same_question_twice_at_once(replica: Replica) -> None:
    """Recalls of one text side by side each see its queries, though one might find what the other computes."""
    await filled(replica)
    text = "a question that fills more than one block of tokens"
    one, other = await asyncio.gather(*(replica.manager.recall(TENANT, "a", text, 3) for _ in range(2)))
    assert one == other
    assert one


async def test_empty_and_unknown_sessions(replica: Replica) -> None:
    """A session without tokens has nothing to recall and no attention; another tenant's does not exist; too long a text is refused."""
    await replica.create()
    assert [] == await replica.manager.recall(TENANT, "a", "words", 3)
    assert [None] == [turn.attention for turn in (await replica.manager.inspect(TENANT, "a", attention=True))[1]]
    with pytest.raises(NotFound):
        await replica.manager.recall(OTHER, "a", "words", 3)
    await replica.ask("a", "x")
    with pytest.raises(ContextTooLong):
        await replica.manager.recall(TENANT, "a", "x" * 1000, 3)


async def test_raw_sessions(replica: Replica) -> None:
    """In a RAW session the text itself follows the tokens."""
    await replica.raw()
    await replica.ask("r", TurnInput(text="some text about a dog and a cat. "))
    spans = await replica.manager.recall(TENANT, "r", "cat", 2)
    assert 2 == len(spans)
    assert {1} == {span.turn_index for span in spans}


async def test_only_the_texts_own_tokens_ask(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what the template adds nothing asks, of a long text its end does; what the template takes or shows no message of asks as it is."""
    await filled(replica)
    chat, session = replica.manager.generator.chat, replica.session()
    for text in ("words", "a", "abc", "x" * 300):
        query = query_of(chat, session, text)
        assert encode(text)[-MAX_QUERIES:] == query.token_ids[query.asking.start : query.asking.stop]
        assert len(query.token_ids) > len(encode(text))

    def refuse(*_: object, **__: object) -> list[int]:
        raise TemplateNotAppendable("no")

    monkeypatch.setattr(Chat, "encode", refuse)
    query = query_of(chat, session, "words")
    assert (encode("words"), range(5)) == (query.token_ids, query.asking)
    monkeypatch.setattr(Chat, "encode", lambda *_, **__: [1, 2, 3])
    assert range(3) == query_of(chat, session, " ").asking


async def test_what_fails_leaves_nothing(replica: Replica) -> None:
    """When the engine refuses, the fork and the hold on the archive are given back."""
    await filled(replica)
    await replica.settle()
    used = replica.core.engine.pool.used_bytes
    replica.core.engine.scheduler.limits = Limits(max_queue=0)
    with pytest.raises(Overloaded, match="the limit is 0"):
        await replica.manager.recall(TENANT, "a", "words", 3)
    assert (used, 0) == (replica.core.engine.pool.used_bytes, replica.core.archive.stats().held)


async def test_the_turn_of_user_input_is_named(replica: Replica) -> None:
    """Each span lies in the turn whose tokens it is made of, open turns included."""
    await filled(replica)
    await replica.manager.append(TENANT, "a", user("pending words"), request_id=None)
    session = replica.session()
    spans = await replica.manager.recall(TENANT, "a", "words", 50)
    for span in spans:
        start = session.length_at(span.turn_index) - len(session.turns[span.turn_index].token_ids)
        assert start <= span.first_token <= span.first_token + span.n_tokens <= session.length_at(span.turn_index)
    assert {span.turn_index for span in spans} <= {0, 1, 2, 3, 4}
