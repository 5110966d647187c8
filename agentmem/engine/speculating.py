"""Drafts for the decoding runs of a step, and what is learned from how they fare."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from agentmem.engine.batch import Work
from agentmem.engine.reading import Readers
from agentmem.engine.run import Drafted, Run
from agentmem.engine.stats import EngineStats
from agentmem.speculation import DRAFTERS
from agentmem.speculation.controller import Choice, Controller
from agentmem.speculation.corpus import Corpora
from agentmem.speculation.port import AUTO, Context, Draft, Drafter
from agentmem.speculation.tokens import TokenBuffer
from agentmem.types import TenantId

log = logging.getLogger(__name__)
CHEAP = ("suffix", "ngram")  # drafters that look things up: asked in every step
COMPACT_FROM = 16_384  # tokens of context from which the compressed memory may read ahead: below it costs more than it saves
MAX_ROWS = 256  # of a step's drafts together: beyond that they would keep others waiting


class Speculator:
    """Engine thread only. Drafts are guesses: nothing that happens here changes what is generated, only in how many steps."""

    def __init__(self, stats: EngineStats) -> None:
        self.controller = Controller()
        self.corpora = Corpora()
        self._drafters: dict[str, Drafter] = {name: DRAFTERS.get(name)() for name in DRAFTERS}
        self._stats = stats
        self.readers: Readers | None = None

    def draft(self, decoding: Sequence[Run]) -> None:
        """Set ``draft`` of every run that decodes in the step to come."""
        rows = len(decoding)
        attended = sum(len(run.chain) for run in decoding)
        most = len(decoding) + MAX_ROWS
        for run in decoding:
            room = min(_room(run), most - rows)
            run.draft = self._draft(run, room, len(decoding), rows, attended) if room > 0 else Drafted()
            rows += len(run.draft.token_ids)

    def _draft(self, run: Run, room: int, n_runs: int, rows: int, attended: int) -> Drafted:
        """Return the run's draft; one that goes wrong costs the draft and what reads ahead for the run, never the reply."""
        try:
            return self._drafted(run, room, n_runs, rows, attended)
        except Exception:
            log.exception("drafting failed")
            self.close(run)
            return Drafted()

    def _drafted(self, run: Run, room: int, n_runs: int, rows: int, attended: int) -> Drafted:
        wanted = run.request.policy.drafter
        forced = self._forced(run, room)
        room -= len(forced)
        context = self._context(run)
        if not room:
            return Drafted(forced, len(forced))
        names = CHEAP if wanted == AUTO else (wanted,)
        options = {name: self._propose(run, name, forced, room) for name in names}
        if wanted == AUTO:
            ahead, drafts = dict.fromkeys(context.readers, room), bool(forced) or rows > n_runs
            choice = self.controller.choose(run.experience, options, rows + len(forced), attended, drafts=drafts, ahead=ahead)
            if choice.drafter in ahead:
                options[choice.drafter] = self._propose(run, choice.drafter, forced, choice.tokens)
        else:
            choice = Choice(wanted, room)
        draft = options.get(choice.drafter, Draft())
        return Drafted((*forced, *draft.token_ids[: choice.tokens]), len(forced), choice.drafter, draft.strength)

    def _propose(self, run: Run, name: str, forced: tuple[int, ...], limit: int) -> Draft:
        """Return the draft of ``name``, as far as the run's grammar would take it, and learn what it costs to read ahead."""
        context, started = self._context(run), time.perf_counter()
        draft = self._drafters[name].draft(context, forced, limit)
        if name in context.readers and draft.token_ids:
            self.controller.note_reading(name, (time.perf_counter() - started) / len(draft.token_ids))
        return self._legal(run, forced, draft)

    def _forced(self, run: Run, room: int) -> tuple[int, ...]:
        """Return what the run's grammar leaves no choice about, up to ``room`` tokens."""
        if run.guide is None:
            return ()
        with self._stats.guiding:
            return tuple(run.guide.forced()[:room])

    def _legal(self, run: Run, forced: tuple[int, ...], draft: Draft) -> Draft:
        """Return as much of ``draft`` as the run's grammar would take after ``forced``."""
        if run.guide is None or not draft.token_ids:
            return draft
        with self._stats.guiding:
            legal = run.guide.legal((*forced, *draft.token_ids)) - len(forced)
        return Draft(draft.token_ids[: max(0, legal)], draft.strength)

    def _context(self, run: Run) -> Context:
        """Return what drafters may know of ``run``, up to its last token."""
        if run.drafting is None:
            run.drafting = Context(TokenBuffer(), self.corpora.of(run.request.tenant), run.readers)
            wanted = run.request.policy.drafter
            if self.readers is not None:
                far = wanted == AUTO and len(run.chain) >= COMPACT_FROM
                self.readers.open(run, compact=wanted == "compact" or far, model=wanted in {"model", AUTO})
        tokens = run.drafting.tokens
        tokens.extend(run.chain.tokens[len(tokens) :])
        return run.drafting

    def learn(self, step: Sequence[tuple[Run, Work]], seconds: float) -> None:
        """Learn from a step that is over: what it took, unless somebody's prompt was in it, and which drafts were confirmed."""
        rows = sum(len(work.token_ids) for _, work in step)
        drafted = sum(len(run.draft.token_ids) for run, _ in step)
        if all(work.logits and work.start is None for _, work in step) and rows == len(step) + drafted:
            self.controller.cost.learn(rows, sum(len(run.chain) for run, _ in step), seconds, drafts=drafted > 0)
        for run, _ in step:
            draft = run.draft
            proposed = len(draft.token_ids) - draft.n_forced
            self._stats.drafted += len(draft.token_ids)
            self._stats.accepted += run.last_accepted
            if proposed and not run.done:
                accepted = max(0, run.last_accepted - draft.n_forced)
                self.controller.learn(run.experience, draft.drafter, draft.strength, proposed, accepted)

    def close(self, run: Run) -> None:
        """Give back what reads ahead for ``run``."""
        if self.readers is not None:
            self.readers.close(run)

    def remember(self, tenant: TenantId, token_ids: Sequence[int]) -> None:
        """Let later replies of the tenant draft from a tool call or a tool's result."""
        self.corpora.of(tenant).add(token_ids)

    def forget(self, tenant: TenantId) -> None:
        """Drop what is remembered of the tenant: something of it was deleted, and a corpus does not know what came from where."""
        self.corpora.forget(tenant)


def _room(run: Run) -> int:
    """Return how many tokens may be drafted for the run's next step: none where its view lets one token through at a time."""
    request = run.request
    branch = run.branch
    if request.sampling is None or request.policy.drafter == "none" or branch is None:
        return 0
    if run.compacts or request.holes or branch.approx_from is not None:
        return 0
    left = min(request.sampling.max_tokens - len(run.outputs), request.max_length - len(run.chain))
    return max(0, min(request.policy.draft_tokens, left - 1))
