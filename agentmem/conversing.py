"""What comes in on the stream of a tool loop."""

from __future__ import annotations

from dataclasses import dataclass

from agentmem.output import OutputSpec
from agentmem.types import Fidelity, SamplingParams, TurnInput


@dataclass(frozen=True, slots=True)
class ResultPiece:
    """A piece of a tool's result. ``last``: it ends with this piece; ``more``: another call's result follows before the reply.

    ``offset``: characters of all pieces of the request before this one.
    """

    tool_call_id: str
    text: str = ""
    name: str = ""
    last: bool = False
    more: bool = False
    offset: int = 0


@dataclass(frozen=True, slots=True)
class ConverseStep:
    """One message of the client: ``given``, a ``piece``, or the seconds that a tool is expected to take (``waiting``).

    ``params`` and ``output`` None: as before on the stream. ``request_id`` "": the server makes one up. ``resume_after``: tokens that the
    client has of a reply that there is already.
    """

    session_id: str = ""
    given: TurnInput | None = None
    piece: ResultPiece | None = None
    waiting: float | None = None
    params: SamplingParams | None = None
    output: OutputSpec | None = None
    fidelity: Fidelity | None = None
    request_id: str = ""
    resume_after: int = 0
