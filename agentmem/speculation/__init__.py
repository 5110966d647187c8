"""Drafts: tokens that are likely to come next, verified many at a time by one forward pass."""

from agentmem.speculation import compact, forced, model, ngram, none, suffix  # noqa: F401 - registers them
from agentmem.speculation.port import AUTO, DRAFTERS, check_drafter

__all__ = ["AUTO", "DRAFTERS", "check_drafter"]
