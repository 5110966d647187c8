"""One reply in the making: what was asked, how far it is, what came out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

from torch import Tensor

from agentmem.engine.observe import Observer
from agentmem.errors import AgentMemError, InternalError
from agentmem.memory.hashing import Chain
from agentmem.memory.recall.state import RecallState
from agentmem.memory.sealed import SealedMemory
from agentmem.memory.segment import Branch
from agentmem.speculation.controller import Experience
from agentmem.speculation.guide import Guide
from agentmem.speculation.port import Context, Reader
from agentmem.types import (
    Fidelity,
    FinishReason,
    MissReason,
    Policy,
    Prefill,
    RequestId,
    ReuseReport,
    SamplingParams,
    TenantId,
    Tier,
    TokenLogprob,
)

MAX_DECODED = 1024  # log probabilities that a run keeps for the fidelity report; 100 kB each for a vocabulary of 50,000


class ReplyText(Protocol):
    """Turns generated ids into text and finds stop strings; one per run, used by the engine thread only."""

    def push(self, token_id: int) -> str:
        """Return the text that became certain with this token; "" while a stop string or UTF-8 may be incomplete."""

    def finish(self) -> str:
        """Return what was held back, when the reply ends without a stop string."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string has appeared."""


class RunReader(Reader, Protocol):
    """A reader that holds something of the engine's."""

    def close(self) -> None:
        """Give it back."""


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """What the engine must do for one call.

    ``chain``: every token of the context; the run owns it and appends what it generates. ``branch``: the session's resident
    memory, which the run takes over, or None. ``sampling`` None only computes K and V. ``computed_before``: leading tokens whose
    K and V this session has had before, so that a miss among them can be explained; ``hint`` is the reason (and detail) when it is known.
    ``max_length``: tokens the context may reach. ``deadline``: ``time.monotonic`` seconds.

    ``fidelity`` EXACT, RECALL or COMPACT; the last two attend to ``memory`` (nothing sealed: to everything) under ``policy``. A
    ``background`` request takes part only in steps that nobody else needs, evicts nobody, and is refused (CANCELLED) when memory is short.
    Without sampling it may also ``reencode``: compute approximate K and V again under full attention, and compare the predictions with
    ``decoded`` (see ``Run.decoded``). ``observer`` sees the positions ``observe``, ascending: of a background request's tokens also those
    that stand already, of any other's those from the first of ``observe`` on, which are computed whoever else may have them.

    ``holes``: positions of ``branch`` that nobody may attend to any more; what is computed without them is approximate. Such a run reads
    all the rest, compact or not, and needs just this branch: where it is away when memory is given out, ``instead`` is done.

    ``guide`` makes the state of the grammar that the reply must follow.
    """

    request_id: RequestId
    tenant: TenantId
    chain: Chain
    branch: Branch | None = None
    sampling: SamplingParams | None = None
    seed: int = 0
    end_token_ids: frozenset[int] = frozenset()
    reply_text: Callable[[], ReplyText] | None = None
    max_length: int = 0
    computed_before: int = 0
    hint: tuple[MissReason, str] | None = None
    deadline: float | None = None
    fidelity: Fidelity = Fidelity.EXACT
    memory: SealedMemory | None = None
    policy: Policy = field(default_factory=Policy)
    background: bool = False
    reencode: bool = False
    decoded: Mapping[int, Tensor] = field(default_factory=dict)
    observe: tuple[range, ...] = ()
    observer: Observer | None = None
    holes: tuple[range, ...] = ()
    instead: EngineRequest | None = None
    guide: Callable[[], Guide] | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a token that was decoded under an approximate view compares with exact attention; KL(exact || decoded) in nats.

    ``position`` is the predicted token's; ``agrees``: both hold the same token likeliest.
    """

    position: int
    kl: float
    agrees: bool


@dataclass(frozen=True, slots=True)
class Output:
    """One generated token, the text that became certain with it, and its log probabilities if asked for."""

    token_id: int
    text: str
    logprob: TokenLogprob | None = None
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Drafted:
    """Tokens that this step verifies: the first ``n_forced`` a grammar leaves no choice about, the others ``drafter`` has proposed."""

    token_ids: tuple[int, ...] = ()
    n_forced: int = 0
    drafter: str = "none"
    strength: int = 0


class RunState(Enum):
    """Where a run is; HELD waits for another run that is computing the same prefix."""

    WAITING = auto()
    HELD = auto()
    RESTORING = auto()
    RUNNING = auto()
    DONE = auto()


class Run:
    """The engine thread writes, readers on the event loop follow by ``changed``; lists only ever grow.

    ``decoded``: of predictions made under an approximate view, the position of the token that was fed -> log probabilities ``[vocab]``,
    fp16, on the CPU; at most MAX_DECODED. ``comparisons``: what a re-encode found.
    """

    def __init__(self, request: EngineRequest, loop: asyncio.AbstractEventLoop) -> None:
        self._take(request)
        self.state = RunState.WAITING
        self.outputs: list[Output] = []
        self.tail_text = ""  # held back until the reply ended
        self.num_published = 0  # full blocks of the chain that were made findable
        self.finish_reason: FinishReason | None = None
        self.error: AgentMemError | None = None
        self.cancel_reason: FinishReason | None = None  # set by any thread, seen by the engine at the next step
        self.reused = dict.fromkeys(Tier, 0)
        self.explained = False  # ``reused`` and ``miss`` are final
        self.miss: tuple[MissReason, str] = (MissReason.NONE, "")
        self.reply_text = request.reply_text() if request.reply_text else None
        self.source: Branch | None = None  # the branch whose tail goes into a compact branch that is being made
        self.recall: RecallState | None = None
        self.decoded: dict[int, Tensor] = {}
        self.comparisons: list[Comparison] = []
        self.num_observed = 0  # tokens of the observed ranges that were seen
        self.guide = request.guide() if request.guide else None
        self.draft = Drafted()  # of the step that is being planned or taken
        self.drafting: Context | None = None  # once the run drafts
        self.experience = Experience()
        self.readers: dict[str, RunReader] = {}  # by the name of the drafter that has them read ahead
        self.num_drafted = 0
        self.num_accepted = 0
        self.last_accepted = 0  # of the draft of the last step
        self.attended_sum = 0.0
        self.num_decoded = 0
        self.created = time.monotonic()
        self.started = 0.0
        self.first_token = 0.0
        self.finished = 0.0
        self.num_steps = 0
        self._loop = loop
        self._changed = asyncio.Event()

    def _take(self, request: EngineRequest) -> None:
        self.request = request
        self.chain = request.chain
        self.prompt_length = len(request.chain)
        self.branch: Branch | None = request.branch
        self.memory = request.memory if request.fidelity is not Fidelity.EXACT else None

    def fall_back(self) -> None:
        """Do what was asked for instead. Engine thread only, before the run has started."""
        if self.request.instead is None:
            raise InternalError("a run lost the branch that it cannot do without")
        self._take(self.request.instead)

    @property
    def done(self) -> bool:
        """Whether nothing will change any more."""
        return self.state is RunState.DONE

    @property
    def pending(self) -> list[int]:
        """Tokens whose K and V are still to be computed."""
        return self.chain.tokens[self.branch.length if self.branch else 0 :]

    @property
    def reusable(self) -> int:
        """Leading tokens whose K and V may be taken from wherever they are: all but those that must go through the model."""
        if self.request.sampling is not None:
            return len(self.chain) - 1
        if self.request.observe and not self.request.background:
            return self.request.observe[0].start
        return len(self.chain)

    @property
    def compacts(self) -> bool:
        """Whether there are sealed tokens for which a compact segment stands in."""
        return self.memory is not None and self.memory.length > 0

    @property
    def recalls(self) -> bool:
        """Whether decode steps search the sealed tokens."""
        return self.compacts and self.request.fidelity is Fidelity.RECALL and not self.request.holes

    @property
    def context_length(self) -> int:
        """Tokens that the first step of the reply attends to."""
        return self.prompt_length - sum(map(len, self.request.holes))

    @property
    def by_token(self) -> bool:
        """Whether the prompt too is computed under the approximate view, token by token."""
        return self.compacts and self.request.policy.prefill is Prefill.VIEW and not self.request.holes

    @property
    def attended(self) -> float:
        """Mean share of the context that a decode step attended to."""
        return self.attended_sum / self.num_decoded if self.num_decoded else 1.0

    def reuse_report(self) -> ReuseReport:
        """Return where the prompt's tokens came from, as known once the run has started."""
        read = sum(self.reused.values())
        return ReuseReport(
            device=self.reused[Tier.DEVICE] - self.prompt_length + self.context_length,
            host=self.reused[Tier.HOST],
            disk=self.reused[Tier.DISK],
            peer=self.reused[Tier.PEER],
            computed=self.prompt_length - read,
            reason=self.miss[0],
            detail=self.miss[1],
        )

    @property
    def news(self) -> asyncio.Event:
        """The event that the next news sets: take it, look at the run, then wait for it. Event loop only."""
        return self._changed

    def wake(self) -> None:
        """Tell every reader that there is news. Event loop only."""
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    def wake_threadsafe(self) -> None:
        """Tell every reader, from the engine thread; does nothing once the loop is closed."""
        with suppress(RuntimeError):  # what a closed loop raises; asking it first would leave a gap
            self._loop.call_soon_threadsafe(self.wake)


def branch_of(run: Run) -> Branch:
    """Return the branch of a run that was admitted. Raises InternalError where it has none."""
    if run.branch is None:
        raise InternalError("a run takes part in a step without a branch")
    return run.branch
