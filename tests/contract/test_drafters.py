"""What every drafter keeps to, whatever it looks at. A drafter joins by being registered."""

from __future__ import annotations

import asyncio
from functools import cache

import pytest
import torch
from support.engines import Oracle, WatchedRunner, finished, ids, request, running
from support.families import VOCAB, llama
from transformers import PreTrainedModel

from agentmem.engine.run import Run
from agentmem.speculation import AUTO, DRAFTERS
from agentmem.speculation.corpus import Corpus
from agentmem.speculation.port import Context
from agentmem.speculation.tokens import TokenBuffer
from agentmem.types import Policy, TenantId

NAMES = sorted(DRAFTERS)
LOOP = [7, 8, 9, 10, 11, 12] * 6
PROMPTS = [LOOP, [*range(20, 50), *range(20, 30)], [(13 * i) % VOCAB for i in range(40)]]
SAMPLINGS = [{}, {"temperature": 0.7, "top_p": 0.9}, {"temperature": 1.0, "top_p": 0.95}, {"temperature": 1.0, "repetition_penalty": 1.2}]


@cache
def model() -> PreTrainedModel:
    return llama()


def context_of(tokens: list[int], corpus: list[int] | None = None) -> Context:
    """Return a context, with a tenant's corpus of one text if there is one."""
    known = Corpus()
    if corpus is not None:
        known.add(corpus)
    return Context(TokenBuffer(tokens), known)


@cache
def small() -> PreTrainedModel:
    """Return a smaller model that knows the same tokens."""
    return llama(num_hidden_layers=1)


@cache
def reference() -> PreTrainedModel:
    """Return the same model as HF runs it."""
    twin = llama()
    twin.set_attn_implementation("eager")
    return twin


async def replies(drafter: str, sampling: dict[str, float]) -> list[Run]:
    """Return the replies to all prompts at once, 40 tokens each."""
    torch.set_num_threads(1)
    policy = Policy(drafter=drafter, draft_tokens=6)
    async with running(WatchedRunner(model()), small=small()) as engine:
        engine.speculator.remember(TenantId("t"), PROMPTS[2])
        asked = [request(prompt, n=40, seed=n, policy=policy, **sampling) for n, prompt in enumerate(PROMPTS)]
        return await asyncio.gather(*[finished(await engine.submit(one)) for one in asked])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tokens", [[], [5], [5, 5], LOOP, PROMPTS[1], PROMPTS[2]], ids=["empty", "one", "two", "loop", "once more", "new"])
@pytest.mark.parametrize("after", [[], [7, 8]], ids=["", "after"])
@pytest.mark.parametrize("limit", [1, 16])
def test_drafts_are_tokens_within_the_limit(name: str, tokens: list[int], after: list[int], limit: int) -> None:
    """A draft is known tokens, at most as many as were asked for; asked again it is the same, and the context is left alone."""
    drafter, context = DRAFTERS.get(name)(), context_of(tokens, LOOP)
    draft = drafter.draft(context, after, limit)

    assert len(draft.token_ids) <= limit
    assert {*draft.token_ids} <= {*tokens, *after, *LOOP}
    assert (draft.strength > 0) or not draft.token_ids
    assert draft == drafter.draft(context, after, limit)
    assert tokens == context.tokens.array.tolist()


@pytest.mark.parametrize("name", ["ngram", "suffix"])
def test_a_loop_goes_on(name: str) -> None:
    """Where the text repeats itself, the draft is its next round; what is certain to come first counts as text."""
    drafter = DRAFTERS.get(name)()

    assert (7, 8, 9, 10) == drafter.draft(context_of(LOOP), [], 4).token_ids
    assert (9, 10, 11, 12) == drafter.draft(context_of(LOOP), [7, 8], 4).token_ids


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "0.7", "1.0", "penalty"])
@pytest.mark.parametrize("name", [AUTO, *(name for name in NAMES if name != "none")])
async def test_a_drafter_changes_nothing_but_the_steps(name: str, sampling: dict[str, float]) -> None:
    """Token for token the same replies as without, at any temperature (invariant 5); usage counts what was drafted and accepted."""
    with_drafts, without = await replies(name, sampling), await replies("none", sampling)

    assert [ids(run) for run in without] == [ids(run) for run in with_drafts]
    for run in with_drafts:
        assert 0 <= run.num_accepted <= run.num_drafted
        assert run.num_steps >= 40 - run.num_accepted
    assert all(run.num_drafted == 0 for run in without)


@pytest.mark.parametrize("name", ["ngram", "suffix", AUTO])
async def test_repetition_takes_fewer_steps(name: str) -> None:
    """A model that repeats itself is confirmed several tokens at a time."""
    torch.set_num_threads(1)
    oracle = Oracle(reference())
    prompts = [[(seed * i) % 50 + 3 for i in range(1, 20)] for seed in range(40)]
    prompt = min(prompts, key=lambda text: len({*oracle(text, 60)}))
    async with running(WatchedRunner(model())) as engine:
        run = await finished(await engine.submit(request(prompt, n=60, policy=Policy(drafter=name))))

    assert oracle(prompt, 60) == ids(run)
    assert run.num_steps < 60


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "0.7", "1.0", "penalty"])
async def test_a_small_model_that_knows_everything_is_always_right(sampling: dict[str, float]) -> None:
    """With the served model's own weights every draft is confirmed, sampled ones too, since both draw with the same noise."""
    torch.set_num_threads(1)
    policy = Policy(drafter="model", draft_tokens=4)
    async with running(WatchedRunner(model()), small=llama()) as engine:
        run = await finished(await engine.submit(request(PROMPTS[2], n=41, seed=5, policy=policy, **sampling)))
    penalised = "repetition_penalty" in sampling  # what is drafted counts as seen only once it is confirmed

    assert run.num_drafted > 0
    assert penalised or run.num_accepted == run.num_drafted
    assert run.num_steps <= (41 if penalised else 10)


async def test_what_a_small_model_has_read_is_found_again() -> None:
    """The next turn's drafts start from the blocks that the last one's left; a long prompt is caught up with over several steps."""
    torch.set_num_threads(1)
    policy = Policy(drafter="model", draft_tokens=2)
    own = WatchedRunner(llama())
    async with running(WatchedRunner(model()), small=llama()) as engine:
        readers = engine.speculator.readers
        assert readers is not None
        pool = readers._small[1]  # type: ignore[index]
        readers._small = (own, pool)
        run = await finished(await engine.submit(request(PROMPTS[2], n=20, policy=policy)))
        first = own.num_tokens
        await finished(await engine.submit(request([*run.chain.tokens, 5, 6, 7], n=4, policy=policy)))

    assert first >= len(PROMPTS[2])
    assert own.num_tokens - first < 40
