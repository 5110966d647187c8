"""Invariant 5 at the level of sessions: greedy fp32 replies equal those of transformers with a full cache."""

from __future__ import annotations

from support.replica import PROMPT, Replica, encode, greedy, rendered


async def test_first_reply_is_the_models(replica: Replica) -> None:
    """A new session's ids are the template's rendering, its reply is what transformers generates."""
    await replica.create(system="Be terse.")
    answer = await replica.ask("a", "What is 2+2?", 12)

    prompt = encode(rendered([("system", "Be terse."), ("user", "What is 2+2?")]) + PROMPT)
    assert greedy(tuple(prompt), 12) == answer.token_ids
    assert [*prompt, *answer.token_ids] == replica.tokens()
