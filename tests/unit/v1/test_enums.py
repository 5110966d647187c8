from __future__ import annotations

import pytest

from agentmem.errors import InvalidInput
from agentmem.types import Fidelity
from agentmem.v1 import enums

CODECS = {name: codec for name, codec in vars(enums).items() if isinstance(codec, enums.EnumCodec)}


@pytest.mark.parametrize("name", sorted(CODECS))
def test_both_worlds_have_the_same_values(name: str) -> None:
    """Every value has a wire name and every wire name but UNSPECIFIED a value; a new one must be added on both sides."""
    codec = CODECS[name]
    assert set(codec.wire.keys()) - {codec.unspecified} == set(codec.names.values())
    assert 0 == codec.wire.Value(codec.unspecified)


@pytest.mark.parametrize("name", sorted(CODECS))
def test_values_survive_the_wire(name: str) -> None:
    """Reading what was written gives the same value."""
    codec = CODECS[name]
    assert list(codec.names) == [codec.read(codec.wire.Value(codec[value]), "field") for value in codec.names]


def test_none_and_unknown_words_are_unspecified() -> None:
    """What has no wire name is sent as UNSPECIFIED."""
    assert ("FIDELITY_UNSPECIFIED", "FIDELITY_UNSPECIFIED") == (enums.FIDELITY[None], enums.FIDELITY["other"])


def test_reading_zero() -> None:
    """UNSPECIFIED is the default where there is one, and an error where a value is required."""
    assert Fidelity.AUTO == enums.FIDELITY.read(0, "fidelity", Fidelity.AUTO)
    with pytest.raises(InvalidInput, match="role is 0, which is none of: ROLE_ASSISTANT, ROLE_SYSTEM, ROLE_TOOL, ROLE_USER"):
        enums.ROLE.read(0, "role")


def test_only_protobuf_enums() -> None:
    """A codec over something else is a mistake of the programmer."""
    with pytest.raises(TypeError, match="X is not a protobuf enum"):
        enums._codec(dict, "X", ())
