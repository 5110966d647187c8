"""Drafts for the decoding runs of a step, and what is learned from how they fare."""

from __future__ import annotations

from collections.abc import Sequence

from agentmem.engine.batch import Work
from agentmem.engine.run import Drafted, Run
from agentmem.engine.stats import EngineStats
from agentmem.speculation import DRAFTERS
from agentmem.speculation.controller import Choice, Controller
from agentmem.speculation.corpus import Corpora
from agentmem.speculation.port import AUTO, Context, Draft, Drafter
from agentmem.speculation.tokens import TokenBuffer
from agentmem.types import TenantId

CHEAP = ("suffix", "ngram")  # drafters that look things up: asked in every step
MAX_ROWS = 256  # of a step's drafts together: beyond that they would keep others waiting


class Speculator:
    """Engine thread only. Drafts are guesses: nothing that happens here changes what is generated, only in how many steps."""

    def __init__(self, stats: EngineStats) -> None:
        self.controller = Controller()
        self.corpora = Corpora()
        self._drafters: dict[str, Drafter] = {name: DRAFTERS.get(name)() for name in DRAFTERS}
        self._stats = stats

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
        wanted = run.request.policy.drafter
        forced = tuple(run.guide.forced()[:room]) if run.guide is not None else ()
        room -= len(forced)
        context = self._context(run)
        names = CHEAP if wanted == AUTO else (wanted,)
        options = {name: self._legal(run, forced, self._drafters[name].draft(context, forced, room)) for name in names} if room else {}
        if wanted == AUTO:
            drafts = bool(forced) or rows > n_runs
            choice = self.controller.choose(run.experience, options, rows + len(forced), attended, drafts=drafts)
        else:
            choice = Choice(wanted, len(options[wanted].token_ids)) if options else Choice()
        draft = options.get(choice.drafter, Draft())
        return Drafted((*forced, *draft.token_ids[: choice.tokens]), len(forced), choice.drafter, draft.strength)

    def _legal(self, run: Run, forced: tuple[int, ...], draft: Draft) -> Draft:
        """Return as much of ``draft`` as the run's grammar would take after ``forced``."""
        if run.guide is None or not draft.token_ids:
            return draft
        legal = run.guide.legal((*forced, *draft.token_ids)) - len(forced)
        return Draft(draft.token_ids[: max(0, legal)], draft.strength)

    def _context(self, run: Run) -> Context:
        """Return what drafters may know of ``run``, up to its last token."""
        if run.drafting is None:
            run.drafting = Context(TokenBuffer(), self.corpora.of(run.request.tenant))
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
