from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
import torch
from support.engines import request

from agentmem.engine.replies import finish_of, sample_each, sample_rows
from agentmem.engine.run import EngineRequest, Output, Run
from agentmem.engine.sampling import Sampler
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


def after(run: Run, *token_ids: int) -> FinishReason | None:
    run.outputs += [Output(token_id, "") for token_id in token_ids]
    run.chain.extend(token_ids)
    return finish_of(run)


def test_each_run_gets_its_row() -> None:
    """Rows and runs go together; text is asked for where the run has any."""
    with_text, without = run_of(request([1], reply_text=Letters)), run_of(request([2]))
    outputs = sample_rows(Sampler(), [with_text, without], likely(3, 4))

    assert [Output(3, "d"), Output(4, "")] == outputs
    assert [] == sample_rows(Sampler(), [], torch.empty(0, 30))


def test_log_probabilities_are_passed_on() -> None:
    """What the sampler says of a token's probability reaches the output."""
    (output,) = sample_rows(Sampler(), [run_of(request([1], logprobs=2))], likely(3))

    assert output.logprob is not None
    assert (3, 3, 2) == (output.logprob.token_id, output.top[0].token_id, len(output.top))


@pytest.mark.parametrize("changes", [{"end_token_ids": frozenset({7})}, {"stop_token_ids": (7,)}])
def test_end_tokens_have_no_text(changes: dict[str, object]) -> None:
    """The model's end token and the request's stop tokens end the reply and are not shown."""
    run = run_of(request([1], reply_text=Letters, **changes))
    (output,) = sample_rows(Sampler(), [run], likely(7))

    assert Output(7, "") == output
    assert FinishReason.STOP is after(run, 7)


def test_the_end_token_can_be_ignored() -> None:
    """With ignore_eos the model's end token is a token like others; the request's own stop tokens still stop."""
    run = run_of(request([1], reply_text=Letters, end_token_ids=frozenset({7}), ignore_eos=True, stop_token_ids=(8,)))

    assert [Output(7, "h")] == sample_rows(Sampler(), [run], likely(7))
    assert after(run, 7) is None
    assert FinishReason.STOP is after(run, 8)


def test_why_a_reply_ends() -> None:
    """A stop string, max_tokens, and the context's limit each end it with their own reason; the first two come first."""
    letters = run_of(request([1], reply_text=Letters))
    sample_rows(Sampler(), [letters], likely(25))

    assert FinishReason.STOP_STRING is after(letters, 25)
    assert [None, FinishReason.LENGTH] == [after(run, 4) for run in [run_of(request([1], n=2))] for _ in range(2)]
    assert [None, FinishReason.CONTEXT_FULL] == [after(run, 4) for run in [run_of(request([1], max_length=3))] for _ in range(2)]
    assert FinishReason.LENGTH is after(run_of(request([1], n=1, max_length=2)), 4)


def test_a_prefill_only_run_has_no_reply() -> None:
    """It never ends by a token, and asking it for one is a bug."""
    run = run_of(request([1, 2], n=None))

    assert finish_of(run) is None
    with pytest.raises(InternalError, match="prefill-only"):
        sample_rows(Sampler(), [run], likely(3))


def test_a_row_that_cannot_be_sampled_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Logits that are not numbers end their own run; the runs beside it get their tokens."""
    logits = likely(3, 4, 5)
    logits[1, 7] = float("nan")
    first, broken, last = sample_each(Sampler(), [run_of(request([n])) for n in (1, 2, 3)], logits)

    assert [Output(3, ""), Output(5, "")] == [first, last]
    assert isinstance(broken, InternalError)
    assert "maximum nan" in broken.message
    assert "a row could not be sampled" in caplog.text
