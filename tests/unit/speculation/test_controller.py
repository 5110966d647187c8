from __future__ import annotations

from itertools import pairwise

import pytest

from agentmem.speculation.controller import MOST_PATIENCE, Choice, Controller, Experience, StepCost, bucket
from agentmem.speculation.port import Draft

LONG = Draft(tuple(range(16)), 8)


def taught(controller: Controller, mine: Experience, accepted: int, drafted: int = 8, times: int = 40) -> None:
    for _ in range(times):
        controller.learn(mine, "suffix", LONG.strength, drafted, accepted)


def costing(per_row: float, base: float = 0.02) -> Controller:
    """Return a controller that has measured steps in which each row costs so many seconds."""
    controller = Controller()
    for n in range(200):
        rows = 1 + n % 17
        controller.cost.learn(rows, 1000, base + per_row * rows, drafts=rows > 1)
    return controller


def test_drafts_that_hold_are_taken_whole() -> None:
    """Where nearly every token is accepted and rows cost little, the whole draft is verified."""
    controller, mine = costing(0.0002), Experience()
    taught(controller, mine, 8)

    assert Choice("suffix", 16) == controller.choose(mine, {"suffix": LONG}, 1, 1000)


def test_drafts_that_fail_are_left_alone() -> None:
    """Where no token is accepted nothing is verified, but for a short trial now and then, ever more rarely."""
    controller, mine = costing(0.002), Experience()
    taught(controller, mine, 0)
    chosen = [controller.choose(mine, {"suffix": LONG}, 1, 1000).tokens for _ in range(4 * MOST_PATIENCE)]
    tried = [step for step, tokens in enumerate(chosen) if tokens]

    assert 3 <= len(tried) <= 10
    assert MOST_PATIENCE == max(later - earlier for earlier, later in pairwise(tried))


def test_a_dearer_row_shortens_the_draft() -> None:
    """The same acceptance is worth fewer rows where a row costs more, and none where it costs as much as a step."""
    lengths = []
    for per_row in (0.0001, 0.002, 0.2):
        controller, mine = costing(per_row), Experience()
        taught(controller, mine, 4, drafted=6)
        lengths.append(controller.choose(mine, {"suffix": LONG}, 1, 1000).tokens)

    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1] == 0


def test_the_better_drafter_is_chosen() -> None:
    """Of two drafts the one whose kind has held so far is verified."""
    controller, mine = costing(0.0005), Experience()
    for _ in range(50):
        controller.learn(mine, "suffix", 8, 8, 1)
        controller.learn(mine, "ngram", 4, 8, 7)

    assert "ngram" == controller.choose(mine, {"suffix": LONG, "ngram": Draft(LONG.token_ids, 4)}, 1, 1000).drafter


def test_a_new_reply_starts_from_what_others_saw() -> None:
    """What one reply has learned is where the next begins, and its own experience then counts for more."""
    controller = costing(0.002)
    taught(controller, Experience(), 0, times=200)
    mine = Experience()
    assert 0 == controller.choose(mine, {"suffix": LONG}, 1, 1000).tokens
    for _ in range(30):
        mine.rates.learn("suffix", bucket(LONG.strength), 8, failed=False)

    assert controller.choose(mine, {"suffix": LONG}, 1, 1000).tokens > 8


@pytest.mark.parametrize("scale", [1e-4, 1.0, 50.0])
def test_step_costs_are_learned_in_any_unit(scale: float) -> None:
    """The fixed part, a row's, the context's and that of drafting at all are told apart; a single slow step changes little."""
    cost = StepCost()
    for n in range(400):
        rows, attended = 1 + n % 9, 500 + 37 * n % 4000
        cost.learn(rows, attended, scale * (10 + 0.5 * rows + 2 * attended / 1000 + 3 * (rows > 1)), drafts=rows > 1)
    cost.learn(1, 1000, scale * 500, drafts=False)

    alone, more, most = (cost.of(rows, 1000, drafts=rows > 1) for rows in (1, 2, 9))
    assert alone == pytest.approx(scale * 12.5, rel=0.15)
    assert more - alone == pytest.approx(scale * 3.5, rel=0.5)
    assert most - more == pytest.approx(scale * 3.5, rel=0.2)
    assert cost.of(1, 4000, drafts=False) - alone == pytest.approx(scale * 6, rel=0.2)


def test_strengths_are_learned_in_classes() -> None:
    """Doubling the match is one class more, up to the last."""
    assert [0, 1, 2, 2, 3, 4, 5, 6, 6] == [bucket(n) for n in (0, 1, 2, 3, 4, 8, 16, 32, 10_000)]
