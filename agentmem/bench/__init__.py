"""Benchmarks: each is one file with ``run``, a command of ``agentmem bench``, and its thresholds in ``thresholds.py``."""
