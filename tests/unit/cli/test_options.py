from __future__ import annotations

from dataclasses import asdict

import pytest

from agentmem.cli import options
from agentmem.errors import InvalidInput
from agentmem.types import Fidelity, Policy, Prefill


def test_a_policy_from_words() -> None:
    """Every field of the policy can be set, each by its own kind; what is left out has its default."""
    wanted = Policy(Fidelity.RECALL, "knorm", 0.5, "oracle", 64, 128, 2, 1, Prefill.VIEW, reencode=False, objective=0.5)
    words = [f"{name}={str(value).lower()}" for name, value in asdict(wanted).items()]
    assert wanted == options.policy(words)
    assert Policy(stride=2) == options.policy(["stride=2"])
    assert Policy() == options.policy(None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("keep", "'keep' is not KEY=VALUE"),
        ("size=1", "policy has no 'size'; allowed: fidelity, compressor, keep, recall"),
        ("keep=much", "policy.keep is 'much'; allowed: a number"),
        ("keep=2", "policy.keep is 2.0; allowed: above 0, up to 1"),
        ("stride=1.5", "policy.stride is '1.5'; allowed: a whole number"),
        ("reencode=perhaps", "policy.reencode is 'perhaps'; allowed: true, false"),
        ("fidelity=vague", "policy.fidelity is 'vague'; allowed: auto, exact, recall, compact"),
        ("prefill=vague", "policy.prefill is 'vague'; allowed: exact, view"),
    ],
)
def test_a_policy_that_is_not_allowed(text: str, says: str) -> None:
    """The key, the value and what is allowed are named."""
    with pytest.raises(InvalidInput) as caught:
        options.policy([text])
    assert says in str(caught.value)
