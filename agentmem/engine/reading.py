"""What reads ahead for drafts: the model itself over a compressed memory, or a smaller one with memory of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from agentmem.engine.batch import Work, build_batch
from agentmem.engine.compacting import Compacted, Heads, load_compact
from agentmem.engine.replies import params_of
from agentmem.engine.restore import Restorer
from agentmem.engine.run import Run, branch_of
from agentmem.engine.runner import Runner
from agentmem.engine.sampling import Sampler, SampleRow
from agentmem.memory.pool import KVPool, PoolFull
from agentmem.memory.segment import Branch, Segment

log = logging.getLogger(__name__)
CATCH_UP = 512  # tokens that the smaller model reads in one step of everybody's


class _Reader:
    """Samples with the noise of the position to come, so that a prediction that is right is right at any temperature."""

    def __init__(self, run: Run, runner: Runner, pool: KVPool) -> None:
        self.run = run
        self.runner = runner
        self.pool = pool
        self.position = 0  # of the next token to be predicted
        self._sampler = Sampler()

    def predict(self, work: Work) -> int:
        """Return the token that follows ``work``."""
        logits: Tensor = self.runner.forward(build_batch(self.pool, [work], self.pool.shape.device))
        params = replace(params_of(self.run), logprobs=None)
        row = SampleRow(params, self.run.request.seed, self.position, self.run.chain.tokens)
        self.position += 1
        return self._sampler.sample(logits, [row])[0].token_id


class CompactReader(_Reader):
    """The served model over ``residents`` and the rows of the run's own branch after what they stand for.

    What it writes there is approximate and goes before anything is verified. ``residents`` is the only segment of ``held``, which may be
    spilled like any idle branch; then there is nothing to read.
    """

    def __init__(self, run: Run, runner: Runner, pool: KVPool, held: Branch) -> None:
        super().__init__(run, runner, pool)
        self.held = held
        self._start: int | None = None  # where the branch ended before

    def begin(self, tokens: NDArray[np.int32], after: Sequence[int]) -> int | None:
        """Read the last token and ``after``. See ``Reader.begin``."""
        branch, residents = branch_of(self.run), self.held.root
        if residents is None or not self.held.alive or branch.length < residents.covers:
            return None
        self._start, self.position = branch.length, len(tokens) + len(after)
        return self.predict(self._work([*tokens[branch.length :].tolist(), *after], residents))

    def step(self, token_id: int) -> int:
        """Read a token. See ``Reader.step``."""
        residents = self.held.root
        if residents is None:
            raise RuntimeError("residents went while they were read")  # nothing spills within a step
        return self.predict(self._work([token_id], residents))

    def end(self) -> None:
        """Take the approximate rows back."""
        branch, start = branch_of(self.run), self._start
        self._start = None
        if start is not None and branch.length > start:
            self.pool.truncate(branch, start)

    def close(self) -> None:
        """Give the residents back."""
        self.pool.release(self.held)

    def _work(self, token_ids: list[int], residents: Segment) -> Work:
        return Work(branch_of(self.run), token_ids, (len(token_ids) - 1,), compact=True, residents=residents)


class ModelReader(_Reader):
    """A smaller model that reads along; of what it has read, full blocks are found again by the session's next reply."""

    def __init__(self, run: Run, runner: Runner, pool: KVPool) -> None:
        super().__init__(run, runner, pool)
        self.branch = pool.match(run.chain.hashes)
        self._known = 0

    def begin(self, tokens: NDArray[np.int32], after: Sequence[int]) -> int | None:
        """Read what is new, at most CATCH_UP tokens of it at a time. See ``Reader.begin``."""
        if not self.branch.alive:
            self.branch = self.pool.match(self.run.chain.hashes)
        if self.branch.length >= len(tokens):
            self.pool.truncate(self.branch, len(tokens) - 1)
        new = tokens[self.branch.length :].tolist()
        ids = [*new, *after] if len(new) <= CATCH_UP else new[:CATCH_UP]
        try:
            self.pool.reserve(self.branch, len(ids) + self.run.request.policy.draft_tokens)
        except PoolFull:
            return None
        self._known, self.position = len(tokens), len(tokens) + len(after)
        token = self.predict(Work(self.branch, ids, (len(ids) - 1,)))
        return token if len(new) <= CATCH_UP else None

    def step(self, token_id: int) -> int:
        """Read a token. See ``Reader.step``."""
        return self.predict(Work(self.branch, [token_id], (0,)))

    def end(self) -> None:
        """Keep what was read of the context."""
        if not self.branch.alive:
            return
        if self.branch.length > self._known:
            self.pool.truncate(self.branch, self._known)
        self.pool.publish(self.branch, self.run.chain.hashes, 0)
        self.pool.set_idle(self.branch)

    def close(self) -> None:
        """Leave what was read to the next reply."""
        if self.branch.alive:
            self.pool.set_idle(self.branch)


class Readers:
    """Makes the readers of runs. Engine thread only. ``small``: the smaller model and its pool, if there is one."""

    def __init__(
        self,
        runner: Runner,
        pool: KVPool,
        restorer: Restorer,
        post: Callable[[Callable[[], None]], None],
        small: tuple[Runner, KVPool] | None = None,
    ) -> None:
        self._runner = runner
        self._pool = pool
        self._restorer = restorer
        self._heads: Heads = runner.heads
        self._post = post
        self._small = small

    def open(self, run: Run, *, compact: bool, model: bool) -> None:
        """Give ``run`` its readers: the smaller model at once, the compressed memory when its residents are on the device."""
        if model and self._small is not None:
            run.readers["model"] = ModelReader(run, *self._small)
        memory = run.request.memory
        if not compact or memory is None or memory.length == 0:
            return
        try:
            held = self._pool.compact(memory.length, memory.kept)
        except PoolFull:
            return
        archive, heads, root = self._restorer.archive, self._heads, held.root
        if root is not None:
            self._restorer.run(
                lambda: load_compact(archive, memory, root, heads, None), lambda result: self._post(lambda: self._loaded(run, held, result))
            )

    def _loaded(self, run: Run, held: Branch, result: Compacted | Exception) -> None:
        if isinstance(result, Exception):
            log.warning("residents to draft from could not be read: %s", result)
        root = held.root
        if run.done or isinstance(result, Exception) or result.rows is None or root is None:
            self._pool.release(held)
            return
        root.compact = result.rows
        self._pool.set_idle(held)
        run.readers["compact"] = CompactReader(run, self._runner, self._pool, held)

    def close(self, run: Run) -> None:
        """Give back what the run's readers hold."""
        for reader in run.readers.values():
            reader.close()
        run.readers.clear()
