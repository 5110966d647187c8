from __future__ import annotations

import dataclasses

import pytest

from agentmem import types
from agentmem.errors import InvalidInput
from agentmem.types import Message, SamplingParams

RECORDS = [cls for cls in vars(types).values() if isinstance(cls, type) and dataclasses.is_dataclass(cls)]


@pytest.mark.parametrize("cls", RECORDS, ids=lambda cls: cls.__name__)
def test_records_are_frozen_and_slotted(cls: type) -> None:
    """A record can be shared between threads and layers: it cannot change and takes no other attribute."""
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert hasattr(cls, "__slots__")


def test_a_message_checks_its_role() -> None:
    """An unknown role is refused with the known ones."""
    with pytest.raises(InvalidInput, match="role 'robot' is not one of system, user, assistant, tool"):
        Message("robot", "hi")


def test_a_message_refuses_text_that_utf8_cannot_hold() -> None:
    """A lone surrogate is refused where it enters, with its position; emoji and NUL are text."""
    with pytest.raises(InvalidInput, match="lone surrogate at character 2"):
        Message("user", "ab\ud800")
    assert "\U0001f600\x00" == Message("user", "\U0001f600\x00").content


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": 101.0},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": 1.0},
        {"min_p": -0.1},
        {"repetition_penalty": 0.0},
        {"seed": -1},
        {"seed": 2**63},
        {"max_tokens": 0},
        {"stop": ("",)},
        {"stop": ("x",) * 17},
        {"stop": ("x" * 1001,)},
        {"stop_token_ids": tuple(range(257))},
        {"logprobs": 21},
        {"logprobs": -1},
    ],
)
def test_sampling_out_of_range_names_the_field(values: dict[str, object]) -> None:
    """Each field out of its range is refused by name, with its value and what is allowed."""
    with pytest.raises(InvalidInput, match=rf"^{next(iter(values))} is .*; allowed: "):
        SamplingParams(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["temperature", "top_p", "min_p", "repetition_penalty"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_sampling_refuses_what_is_not_finite(field: str, value: float) -> None:
    """NaN and infinity never reach the sampler."""
    with pytest.raises(InvalidInput, match="finite"):
        SamplingParams(**{field: value})  # type: ignore[arg-type]


def test_sampling_takes_the_limits() -> None:
    """The ends of every range are allowed, and the default is greedy."""
    SamplingParams(temperature=100.0, top_p=1.0, seed=2**63 - 1, max_tokens=1_000_000, stop=("x" * 1000,) * 16, logprobs=20)
    assert 0.0 == SamplingParams().temperature
