"""The enums of agentmem.types and agentmem.views beside those of the protos.

A wire name is the proto enum's name in upper case, an underscore, and the Python value in upper case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from agentmem.errors import InvalidInput
from agentmem.output import FormatKind, ToolMode
from agentmem.types import ROLES, Fidelity, FinishReason, MissReason, Prefill, SessionFormat, Tier, TurnState
from agentmem.v1 import memory_pb2, session_pb2, types_pb2
from agentmem.views import ChangeKind, SealState

E = TypeVar("E", bound=str)


class EnumCodec(Generic[E]):
    """One enum in both worlds.

    ``codec[value]`` is the wire name, which protobuf constructors take; None and unknown words are UNSPECIFIED.
    """

    def __init__(self, wire: EnumTypeWrapper, prefix: str, values: Iterable[E]) -> None:
        self.wire = wire
        self.unspecified = f"{prefix}_UNSPECIFIED"
        self.names: dict[str, str] = {value: f"{prefix}_{value.upper()}" for value in values}
        self._values: dict[int, E] = {wire.Value(self.names[value]): value for value in values}

    def __getitem__(self, value: str | None) -> str:
        return self.unspecified if value is None else self.names.get(value, self.unspecified)

    def read(self, number: int, field: str, default: E | None = None) -> E:
        """Return the value of a wire ``number``, ``default`` for UNSPECIFIED. Raises InvalidInput naming ``field`` and what is allowed."""
        value = default if number == 0 else self._values.get(number)
        if value is None:
            allowed = ", ".join(sorted(self.names.values()))
            raise InvalidInput(f"{field} is {number}, which is none of: {allowed}")
        return value


def _codec(wire: Callable[..., object], prefix: str, values: Iterable[E]) -> EnumCodec[E]:
    if not isinstance(wire, EnumTypeWrapper):
        raise TypeError(f"{prefix} is not a protobuf enum")
    return EnumCodec(wire, prefix, tuple(values))


FIDELITY: EnumCodec[Fidelity] = _codec(types_pb2.Fidelity, "FIDELITY", Fidelity)
SESSION_FORMAT: EnumCodec[SessionFormat] = _codec(types_pb2.SessionFormat, "SESSION_FORMAT", SessionFormat)
FINISH_REASON: EnumCodec[FinishReason] = _codec(types_pb2.FinishReason, "FINISH_REASON", FinishReason)
MISS_REASON: EnumCodec[MissReason] = _codec(types_pb2.MissReason, "MISS_REASON", MissReason)
TOOL_MODE: EnumCodec[ToolMode] = _codec(types_pb2.ToolMode, "TOOL_MODE", ToolMode)
FORMAT_KIND: EnumCodec[FormatKind] = _codec(types_pb2.FormatKind, "FORMAT_KIND", FormatKind)
PREFILL: EnumCodec[Prefill] = _codec(types_pb2.Prefill, "PREFILL", Prefill)
SEAL_STATE: EnumCodec[SealState] = _codec(memory_pb2.SealState, "SEAL_STATE", SealState)
TIER: EnumCodec[Tier] = _codec(types_pb2.Tier, "TIER", Tier)
TURN_STATE: EnumCodec[TurnState] = _codec(types_pb2.TurnState, "TURN_STATE", TurnState)
CHANGE_KIND: EnumCodec[ChangeKind] = _codec(session_pb2.ChangeKind, "CHANGE_KIND", ChangeKind)
ROLE: EnumCodec[str] = _codec(types_pb2.Role, "ROLE", ROLES)
