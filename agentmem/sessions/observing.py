"""Queries for the compressors that want to see some: recorded by a background run, handed to the seal job in a file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import save_file

from agentmem.compression.compressor import Observe, compressors
from agentmem.compression.recipe import SealJob
from agentmem.engine.observe import QueryRecorder
from agentmem.engine.run import EngineRequest
from agentmem.sessions.requests import background_request
from agentmem.sessions.session import Session
from agentmem.types import Fidelity

WINDOW_TOKENS = 64
MAX_WINDOWS = 4
REPEAT_PROMPT = "\n\nRepeat the previous context exactly.\n"  # KVzip, arXiv:2505.23416


@dataclass(frozen=True, slots=True)
class Repetition:
    """How a model is asked to repeat what it has read: the ids of the question, and how long a context may become."""

    prompt: tuple[int, ...]
    max_context: int


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """One background run that records queries. ``ours``: it works on the session's own memory, which comes back with the run."""

    request: EngineRequest
    recorder: QueryRecorder
    ours: bool


def windows(start: int, stop: int, count: int) -> tuple[range, ...]:
    """Return up to ``count`` windows of tokens between ``start`` and ``stop``, evenly spaced, apart, the last at the end."""
    count = max(1, min(count, (stop - start) // WINDOW_TOKENS))
    ends = [start + (stop - start) * (index + 1) // count for index in range(count)]
    return tuple(range(max(start, end - WINDOW_TOKENS), end) for end in ends)


def observation_of(session: Session, job: SealJob, block_tokens: int, repetition: Repetition) -> Observation | None:
    """Return the run that records what the compressor of ``job`` wants to see; None where it wants nothing."""
    observes = compressors.get(job.recipe.compressor).observes
    if observes is Observe.NONE:
        return None
    recorder, start, stop = QueryRecorder(), job.start, job.start + len(job.blocks) * block_tokens
    request = background_request(session)
    if observes is Observe.RECONSTRUCT:
        return Observation(_repeating(session, request, range(start, stop), repetition, recorder), recorder, ours=False)
    ranges = windows(start, stop, MAX_WINDOWS if observes is Observe.SPREAD else 1)
    return Observation(replace(request, observe=ranges, observer=recorder), recorder, ours=True)


def _repeating(session: Session, request: EngineRequest, unit: range, repetition: Repetition, recorder: QueryRecorder) -> EngineRequest:
    """Return a run in which the model reads the session up to the end of ``unit`` and then repeats its tokens, beside the session.

    What would not fit into the model's context is not repeated; one token always is.
    """
    chain = session.chain.copy(unit.stop)
    room = max(1, repetition.max_context - unit.stop - len(repetition.prompt))
    chain.extend([*repetition.prompt, *session.chain.tokens[unit.start : unit.stop][:room]])
    first = unit.stop + len(repetition.prompt)
    return replace(
        request,
        chain=chain,
        branch=None,
        fidelity=Fidelity.EXACT,
        memory=None,
        max_length=len(chain),
        computed_before=unit.stop,
        observe=(range(first, len(chain)),),
        observer=recorder,
    )


@dataclass(slots=True)
class Recordings:
    """Files of recorded queries, one for each job, in ``directory``. They tell what was said: none outlives its job or the process."""

    directory: Path

    def __post_init__(self) -> None:
        """Remove what a process that died has left."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in self.directory.iterdir():
            path.unlink()

    def save(self, job: SealJob, recorder: QueryRecorder) -> SealJob:
        """Write what was recorded and return the job that names the file. Any thread."""
        path = self.directory / f"{job.block.hex()}.{job.name}.safetensors"
        temp = path.with_suffix(".tmp")
        save_file({"queries": recorder.queries.contiguous(), "positions": recorder.positions}, temp)
        temp.replace(path)
        return replace(job, queries=str(path.absolute()))

    def remove(self, job: SealJob) -> None:
        """Remove the file of ``job``, if it has one."""
        if job.queries:
            Path(job.queries).unlink(missing_ok=True)
