from __future__ import annotations

import pytest
from support.replica import TENANT, VOCAB, Replica, encode, greedy, user

from agentmem.errors import InvalidInput
from agentmem.sessions.inputs import digest_of
from agentmem.types import SamplingParams, TurnInput


async def test_raw_text_and_token_ids(replica: Replica) -> None:
    """Text and its token ids are the same input; nothing is added to them, and nothing but them is attended to."""
    await replica.raw("a")
    await replica.raw("b")
    text = await replica.ask("a", TurnInput(text="Once upon a time"))
    ids = await replica.ask("b", TurnInput(token_ids=tuple(encode("Once upon a time"))))

    assert greedy(tuple(encode("Once upon a time")), 8) == text.token_ids == ids.token_ids
    assert [*encode("Once upon a time"), *text.token_ids] == replica.tokens()
    assert text.finish.message is None
    assert text.text == text.finish.text


async def test_raw_goes_on_without_input(replica: Replica) -> None:
    """An empty input continues where the last reply stopped, as if it had not stopped."""
    await replica.raw("a")
    first = await replica.ask("a", TurnInput(text="Once"), 5, ignore_eos=True)
    second = await replica.ask("a", TurnInput(), 5, ignore_eos=True)
    await replica.raw("b")
    whole = await replica.ask("b", TurnInput(text="Once"), 10, ignore_eos=True)

    assert whole.token_ids == first.token_ids + second.token_ids
    assert (0, 2) == (second.start.input_tokens, second.finish.turn_index)


async def test_raw_append_then_generate(replica: Replica) -> None:
    """Appended text is part of the turn that the reply ends."""
    await replica.raw("a")
    await replica.manager.append(TENANT, "a", TurnInput(text="Once "), request_id=None)
    answer = await replica.ask("a", TurnInput(text="upon"))
    assert greedy(tuple(encode("Once upon")), 8) == answer.token_ids
    assert 2 == len(replica.session().turns)


@pytest.mark.parametrize(
    ("name", "given", "problem"),
    [
        ("r", user("x"), "a RAW session takes text or token_ids"),
        ("r", TurnInput(full_history=True), "a RAW session takes text or token_ids"),
        ("r", TurnInput(text="x", token_ids=(1,)), "both text and token_ids"),
        ("r", TurnInput(), "nothing to continue"),
        ("r", TurnInput(token_ids=(1, VOCAB)), rf"token_ids\[1\] is {VOCAB}; the model knows ids 0 to {VOCAB - 1}"),
        ("r", TurnInput(token_ids=(-1,)), r"token_ids\[0\] is -1"),
        ("r", TurnInput(text="\ud800"), "surrogate"),
        ("a", TurnInput(text="x"), "a CHAT session takes messages"),
        ("a", TurnInput(token_ids=(1,)), "a CHAT session takes messages"),
        ("a", TurnInput(), "nothing to reply to"),
    ],
)
async def test_wrong_input(replica: Replica, name: str, given: TurnInput, problem: str) -> None:
    """What a session cannot take is InvalidInput that says what it takes; the session is free and unchanged."""
    await replica.create("a")
    await replica.raw("r")
    with pytest.raises(InvalidInput, match=problem):
        await replica.ask(name, given)
    info = await replica.manager.get(TENANT, name)
    assert (1, False) == (info.n_turns, info.busy)


def test_digests_tell_requests_apart() -> None:
    """Equal calls have equal digests; any difference in input or sampling shows."""
    calls = [
        (user("a"), None),
        (user("b"), None),
        (user("a"), SamplingParams()),
        (user("a"), SamplingParams(seed=1)),
        (TurnInput(text="a"), None),
        (TurnInput(messages=user("a").messages, full_history=True), None),
    ]
    assert len(calls) == len({digest_of(*call) for call in calls})
    assert digest_of(user("a"), SamplingParams()) == digest_of(user("a"), SamplingParams())
