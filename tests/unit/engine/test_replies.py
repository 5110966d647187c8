from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
import torch
from support.engines import request
from support.grammars import Ladder

from agentmem.engine.replies import finish_of, reply_each
from agentmem.engine.run import Drafted, EngineRequest, Output, Run
from agentmem.engine.sampling import Sampler
from agentmem.engine.stats import Stopwatch
from agentmem.errors import InternalError
from agentmem.types import FinishReason


@dataclass
class Letters:
    """Text of one letter a token, which stops at z."""

    pushed: list[int] = field(default_factory=list)

    def push(self, token_id: int) -> str:
        self.pushed.append(token_id)
        return chr(ord("a") + token_id)

    def finish(self) -> str:
        return ""

    @property
    def stopped(self) -> bool:
        return 25 in self.pushed


def run_of(asked: EngineRequest) -> Run:
    loop = asyncio.new_event_loop()
    loop.close()
    return Run(asked, loop)


def likely(*token_ids: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(token_ids), 30).float() * 9


def replies(runs: list[Run], logits: torch.Tensor) -> list[Output]:
    """Return the last output of each run after a step with these logits, one row each."""
    ended = reply_each(Sampler(), runs, logits)
    assert [] == [error for error in ended if isinstance(error, Exception)]
    return [run.outputs[-1] for run in runs]


def after(run: Run, *token_ids: int) -> FinishReason | None:
    run.outputs += [Output(token_id, "") for token_id in token_ids]
    run.chain.extend(token_ids)
    return finish_of(run)


def test_each_run_gets_its_row() -> None:
    """Rows and runs go together; text is asked for where the run has any."""
    with_text, without = run_of(request([1], reply_text=Letters)), run_of(request([2]))
    outputs = replies([with_text, without], likely(3, 4))

    assert [Output(3, "d"), Output(4, "")] == outputs
    assert [] == reply_each(Sampler(), [], torch.empty(0, 30))


def test_log_probabilities_are_passed_on() -> None:
    """What the sampler says of a token's probability reaches the output."""
    (output,) = replies([run_of(request([1], logprobs=2))], likely(3))

    assert output.logprob is not None
    assert (3, 3, 2) == (output.logprob.token_id, output.top[0].token_id, len(output.top))


@pytest.mark.parametrize("changes", [{"end_token_ids": frozenset({7})}, {"stop_token_ids": (7,)}])
def test_end_tokens_have_no_text(changes: dict[str, object]) -> None:
    """The model's end token and the request's stop tokens end the reply and are not shown."""
    run = run_of(request([1], reply_text=Letters, **changes))

    assert [FinishReason.STOP] == reply_each(Sampler(), [run], likely(7))
    assert [Output(7, "")] == run.outputs


def test_the_end_token_can_be_ignored() -> None:
    """With ignore_eos the model's end token is a token like others; the request's own stop tokens still stop."""
    run = run_of(request([1], reply_text=Letters, end_token_ids=frozenset({7}), ignore_eos=True, stop_token_ids=(8,)))

    assert [None] == reply_each(Sampler(), [run], likely(7))
    assert [Output(7, "h")] == run.outputs
    assert FinishReason.STOP is after(run, 8)


def test_why_a_reply_ends() -> None:
    """A stop string, max_tokens, and the context's limit each end it with their own reason; the first two come first."""
    letters = run_of(request([1], reply_text=Letters))

    assert [FinishReason.STOP_STRING] == reply_each(Sampler(), [letters], likely(25))
    assert [None, FinishReason.LENGTH] == [after(run, 4) for run in [run_of(request([1], n=2))] for _ in range(2)]
    assert [None, FinishReason.CONTEXT_FULL] == [after(run, 4) for run in [run_of(request([1], max_length=3))] for _ in range(2)]
    assert FinishReason.LENGTH is after(run_of(request([1], n=1, max_length=2)), 4)


def test_a_prefill_only_run_has_no_reply() -> None:
    """It never ends by a token, and asking it for one is a bug."""
    run = run_of(request([1, 2], n=None))

    assert finish_of(run) is None
    (error,) = reply_each(Sampler(), [run], likely(3))
    assert isinstance(error, InternalError)
    assert "prefill-only" in error.message


def test_a_row_that_cannot_be_sampled_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Logits that are not numbers end their own run; the runs beside it get their tokens."""
    logits = likely(3, 4, 5)
    logits[1, 7] = float("nan")
    runs = [run_of(request([n])) for n in (1, 2, 3)]
    first, broken, last = reply_each(Sampler(), runs, logits)

    assert (None, None) == (first, last)
    assert [[Output(3, "")], [], [Output(5, "")]] == [run.outputs for run in runs]
    assert isinstance(broken, InternalError)
    assert "maximum nan" in broken.message
    assert "a row could not be sampled" in caplog.text


@pytest.mark.parametrize(
    ("draft", "tokens", "accepted"),
    [((), [3], 0), ((3, 4, 5), [3, 4, 5, 6], 3), ((3, 9, 5), [3, 4], 1), ((9, 4, 5), [3], 0)],
    ids=["none", "all of it", "its beginning", "nothing of it"],
)
def test_a_draft_is_taken_as_far_as_it_holds(draft: tuple[int, ...], tokens: list[int], accepted: int) -> None:
    """What comes out is what the rows say, up to and with the first that the draft did not have."""
    run, other = run_of(request([1])), run_of(request([2]))
    run.draft = Drafted(draft, drafter="ngram")

    assert [None, None] == reply_each(Sampler(), [run, other], likely(*[3, 4, 5, 6][: len(draft) + 1], 8))
    assert tokens == [output.token_id for output in run.outputs] == run.chain.tokens[1:]
    assert [8] == [output.token_id for output in other.outputs]
    assert (len(draft), accepted, accepted) == (run.num_drafted, run.num_accepted, run.last_accepted)


def test_a_reply_ends_within_a_draft() -> None:
    """Nothing comes after the end token, however right the draft was beyond it."""
    run = run_of(request([1], end_token_ids=frozenset({4})))
    run.draft = Drafted((3, 4, 5), drafter="ngram")

    assert [FinishReason.STOP] == reply_each(Sampler(), [run], likely(3, 4, 5, 6))
    assert [3, 4] == [output.token_id for output in run.outputs]
    assert 2 == run.num_accepted


@pytest.mark.parametrize("draft", [(), (5,), (5, 7), (5, 6), (5, 7, 5)])
def test_a_grammar_decides_before_the_logits(draft: tuple[int, ...]) -> None:
    """Forced tokens come, and of those allowed the likeliest, whatever was drafted; what the grammar takes is timed."""
    run, guiding = run_of(request([1], guide=Ladder)), Stopwatch()
    run.draft = Drafted(draft, drafter="ngram")
    rows = likely(*[9] * (len(draft) + 1))
    rows[:, 7] = 5.0

    assert [None] == reply_each(Sampler(), [run], rows, guiding)
    tokens = [output.token_id for output in run.outputs]
    assert [5, 7, 5, 7][: len(tokens)] == tokens == run.guide.taken
    assert 1 + run.last_accepted == len(tokens)
    assert guiding.seconds >= 0.001 * len(tokens)
