"""Decides in each step whose draft is verified and how much of it: what it is expected to gain against what it costs, both measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from agentmem.speculation.port import Draft

FORGET = 0.98  # what an older observation weighs after each newer one
PRIOR_TRIALS = 6.0  # how much all replies together weigh against one reply's own experience
PRIOR = (0.2, 0.4, 0.55, 0.65, 0.75, 0.85, 0.9)  # acceptance of a token by strength, before anything was measured
READING = 8  # the strength of what was read ahead
MOST_PATIENCE = 256  # steps without a draft before one is tried again, at most
TRIAL_TOKENS = 3


def bucket(strength: int) -> int:
    """Return the class that a draft of that strength is learned in: 0, 1, 2-3, 4-7, 8-15, 16-31, more."""
    return min(strength.bit_length(), len(PRIOR) - 1)


@dataclass(slots=True)
class Rates:
    """Acceptance of drafted tokens by drafter and strength, with older trials fading."""

    counts: dict[tuple[str, int], tuple[float, float]] = field(default_factory=dict)  # accepted, tried

    def of(self, name: str, kind: int) -> tuple[float, float]:
        """Return how many tokens were accepted and tried."""
        return self.counts.get((name, kind), (0.0, 0.0))

    def learn(self, name: str, kind: int, accepted: int, *, failed: bool) -> None:
        """Note one verification: so many tokens accepted in a row, then one that was not, or the draft's end."""
        old, tried = self.of(name, kind)
        self.counts[name, kind] = (FORGET * old + accepted, FORGET * tried + accepted + failed)


class StepCost:
    """What a step takes: a fixed part, a part for each row of the batch, one for each token that is attended to, one for drafting at all.

    The last because single queries and single rows have kernels of their own. Least squares over the latest steps, older ones fading.
    Relative units until something was measured: only ratios matter.
    """

    def __init__(self) -> None:
        # As if steps had been seen: a row costs a fiftieth of the fixed part, attention little, drafting at all a tenth.
        seen = np.array(
            [_features(1, 0, drafts=False), _features(17, 0, drafts=True), _features(2, 0, drafts=True), _features(1, 4000, drafts=False)]
        )
        self._moment = seen.T @ seen
        self._target = seen.T @ np.array([1.02, 1.44, 1.14, 1.10])
        self._known = False
        self._theta = np.linalg.solve(self._moment, self._target)

    def learn(self, rows: int, attended: int, seconds: float, *, drafts: bool) -> None:
        """Note what a step took; ``attended`` are the tokens of all its contexts together, ``drafts``: whether it verified any."""
        if not self._known:  # the first measurement sets the scale
            self._known = True
            self._target *= seconds / self.of(rows, attended, drafts=drafts)
            self._theta = np.linalg.solve(self._moment, self._target)
        seconds = min(seconds, 1.5 * self.of(rows, attended, drafts=drafts))  # an outlier teaches a little, not much
        x = _features(rows, attended, drafts=drafts)
        self._moment = FORGET * self._moment + np.outer(x, x)
        self._target = FORGET * self._target + x * seconds
        ridge = 1e-3 * np.diag(self._moment) + 1e-9
        self._theta = np.linalg.solve(self._moment + np.diag(ridge), self._target + ridge * self._theta)

    def of(self, rows: int, attended: int, *, drafts: bool) -> float:
        """Return what a step is expected to take."""
        theta = self._theta.copy()
        theta[1] = max(theta[1], 0.0)  # no row is free of charge, whatever noise says
        # Contexts that hardly change leave the fixed part and attention's undetermined, their sum is what counts.
        return max(float(theta @ _features(rows, attended, drafts=drafts)), 1e-9)


def _features(rows: int, attended: int, *, drafts: bool) -> NDArray[np.float64]:
    return np.array([1.0, rows, attended / 1000, drafts])


@dataclass(slots=True)
class Experience:
    """What one reply has seen: its own rates, and for how long it has gone without a draft."""

    rates: Rates = field(default_factory=Rates)
    idle: int = 0
    patience: int = 8


@dataclass(frozen=True, slots=True)
class Choice:
    """Whose draft, and how many of its tokens."""

    drafter: str = "none"
    tokens: int = 0


class Controller:
    """One for an engine: what all replies have seen is where a new one starts. Engine thread only."""

    def __init__(self) -> None:
        self.rates = Rates()
        self.cost = StepCost()
        self.reading: dict[str, float] = {}  # seconds that one token read ahead takes, by drafter

    def note_reading(self, name: str, seconds: float) -> None:
        """Note what one token read ahead took."""
        self.reading[name] = seconds if name not in self.reading else self.reading[name] + (seconds - self.reading[name]) / 8

    def choose(
        self,
        mine: Experience,
        options: Mapping[str, Draft],
        rows: int,
        attended: int,
        *,
        drafts: bool = False,
        ahead: Mapping[str, int] | None = None,
    ) -> Choice:
        """Return what to verify in a step that has ``rows`` rows without it; ``drafts``: some of them verify something already.

        ``ahead``: who could read so many tokens ahead, each of which takes time before the step.

        The expected tokens of a draft of k, each accepted with probability p if those before were, are 1 + p + ... + p^k (Leviathan et al.
        2023, arXiv:2211.17192). A reply without a draft that pays tries a short one now and then.
        """
        best, value = Choice(), 1.0 / self.cost.of(rows, attended, drafts=drafts)
        for name, draft in options.items():
            p = self.acceptance(mine, name, draft.strength)
            expected, reach = 1.0, 1.0
            for k in range(1, len(draft.token_ids) + 1):
                reach *= p
                expected += reach
                rate = expected / self.cost.of(rows + k, attended, drafts=True)
                if rate > value:
                    best, value = Choice(name, k), rate
        for name, limit in (ahead or {}).items():
            p, seconds, expected = self.acceptance(mine, name, READING), self.reading.get(name, 0.0), 1.0
            for k in range(1, limit + 1):
                expected += p**k
                rate = expected / (self.cost.of(rows + k, attended, drafts=True) + k * seconds)
                if rate > value:
                    best, value = Choice(name, k), rate
        if best.tokens:
            mine.idle = 0
            return best
        mine.idle += any(draft.token_ids for draft in options.values())
        if mine.idle < mine.patience:
            return best
        mine.idle, mine.patience = 0, min(2 * mine.patience, MOST_PATIENCE)
        if not options:
            return best
        name, draft = max(options.items(), key=lambda option: (bool(option[1].token_ids), option[1].strength))
        return Choice(name, min(TRIAL_TOKENS, len(draft.token_ids)))

    def acceptance(self, mine: Experience, name: str, strength: int) -> float:
        """Return the probability that a token of such a draft is accepted."""
        kind = bucket(strength)
        accepted, tried = self.rates.of(name, kind)
        common = (PRIOR_TRIALS * PRIOR[kind] + accepted) / (PRIOR_TRIALS + tried)
        accepted, tried = mine.rates.of(name, kind)
        return (PRIOR_TRIALS * common + accepted) / (PRIOR_TRIALS + tried)

    def learn(self, mine: Experience, name: str, strength: int, drafted: int, accepted: int) -> None:
        """Note how a draft fared."""
        for rates in (self.rates, mine.rates):
            rates.learn(name, bucket(strength), accepted, failed=accepted < drafted)
        if accepted:
            mine.patience = 8
