"""Drafts: tokens that are likely to come next, verified many at a time by one forward pass."""
