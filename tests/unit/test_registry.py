from __future__ import annotations

import pytest

from agentmem.errors import InvalidInput
from agentmem.registry import Registry


def test_registered_things_are_found_by_name() -> None:
    """The decorator files its argument and returns it; iteration is by name."""
    registry: Registry[object] = Registry("drafter")
    thing, other = object(), object()
    assert thing is registry.register("suffix")(thing)
    registry.register("ngram")(other)
    assert thing is registry.get("suffix")
    assert ["ngram", "suffix"] == list(registry)
    assert "ngram" in registry
    assert "forced" not in registry


def test_an_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    """The error names the kind, what is known and what was probably meant."""
    registry: Registry[int] = Registry("compressor")
    registry.register("snapkv")(1)
    registry.register("keydiff")(2)
    with pytest.raises(InvalidInput, match="unknown compressor 'snapvk'; known: keydiff, snapkv; did you mean 'snapkv'?"):
        registry.get("snapvk")
    with pytest.raises(InvalidInput, match="known: keydiff, snapkv$"):
        registry.get("zzz")


def test_a_name_is_registered_once() -> None:
    """A second thing under the same name is a mistake of the programmer, not of the user."""
    registry: Registry[int] = Registry("index")
    registry.register("flat")(1)
    with pytest.raises(ValueError, match="index 'flat' is registered twice"):
        registry.register("flat")(2)
