"""Metrics and logs: the names that operators see (DESIGN 15). A leaf; imports prometheus_client and nothing heavier.

No session id and no tenant in a label, and no text of prompts or replies in a log unless the settings ask for it.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agentmem.types import MissReason, ReuseReport, Tier, Usage
from agentmem.views import ServerStats

# The request id of the call that the running code works for; every log line carries it.
request_id_var: ContextVar[str] = ContextVar("request_id", default="")

_CALL_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60, 300)
_TOKEN_SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28)
_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 0.99, 1)
# Those of GetStats that only grow, tokens_* apart.
_COUNTS = ("spills", "steps_failed", "blocks_evicted", "seals_done", "guided_seconds", "guided_step_seconds")


class Metrics:
    """Every metric that is counted as things happen. Thread safe, as prometheus_client is."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry = registry or CollectorRegistry()

        def histogram(name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Histogram:
            return Histogram(f"agentmem_{name}", text, labels, buckets=buckets, registry=registry)

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"agentmem_{name}", text, labels, registry=registry)

        self.calls = counter("calls_total", "gRPC calls by method and status code.", ("method", "code"))
        self.call_seconds = histogram("call_duration_seconds", "From accepting a call to its end.", _CALL_SECONDS, ("method",))
        self.calls_running = Gauge("agentmem_calls_running", "gRPC calls running now.", ("method",), registry=registry)
        self.first_token = histogram("time_to_first_token_seconds", "From accepting a call to its first token.", _CALL_SECONDS)
        self.output_token = histogram("time_per_output_token_seconds", "Mean of a reply, after its first token.", _TOKEN_SECONDS)
        self.queue = histogram("queue_seconds", "From accepting a call to its first step.", _CALL_SECONDS)
        self.prompt_tokens = counter("prompt_tokens_total", "Tokens added by calls.")
        self.generation_tokens = counter("generation_tokens_total", "Tokens generated.")
        self.hit_tokens = counter("prefix_cache_hit_tokens_total", "Context tokens that were not computed again.", ("tier",))
        self.computed_tokens = counter("prefix_cache_computed_tokens_total", "Context tokens that had to be computed.")
        self.attended = histogram("attended_share", "Share of the context that a decode step attended to, mean of a reply.", _SHARES)
        self.misses = counter("prefix_cache_misses_total", "Replies by why their first computed token was not found.", ("reason",))

    def reply(self, usage: Usage, reuse: ReuseReport) -> None:
        """Count one finished reply."""
        self.queue.observe(usage.queue_seconds)
        self.prompt_tokens.inc(usage.input_tokens)
        self.generation_tokens.inc(usage.output_tokens)
        if usage.output_tokens:
            self.attended.observe(usage.attended)
            self.first_token.observe(usage.first_token_seconds)
        if usage.output_tokens > 1:
            self.output_token.observe((usage.total_seconds - usage.first_token_seconds) / (usage.output_tokens - 1))
        for tier in Tier:
            self.hit_tokens.labels(tier.value).inc(getattr(reuse, tier.value))
        self.computed_tokens.inc(reuse.computed)
        if reuse.reason is not MissReason.NONE:
            self.misses.labels(reuse.reason.value).inc()

    def watch(self, stats: Callable[[], ServerStats]) -> None:
        """Export the numbers of ``stats()`` at every scrape; it is called from the scraping thread."""
        self.registry.register(_StatsCollector(stats))


class _StatsCollector(Collector):
    """Reads the replica's numbers when they are asked for, so that nothing has to be kept up to date."""

    def __init__(self, stats: Callable[[], ServerStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """Yield one family a number; what only grows is a counter, everything else a gauge."""
        stats = self._stats()
        for field in fields(stats):
            value = getattr(stats, field.name)
            if isinstance(value, str):
                continue
            counts = field.name.startswith("tokens_") or field.name in _COUNTS
            family = CounterMetricFamily if counts else GaugeMetricFamily
            yield family(f"agentmem_{field.name}", f"{field.name} as GetStats reports it.", value=float(value))


_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LogFormatter(logging.Formatter):
    """One line a record, as text or JSON, with the ``extra`` fields of the call site and the request id.

    The extra field ``prompt_text`` is for what people and models wrote: only its length is logged unless ``prompt_text``.
    """

    def __init__(self, *, as_json: bool, prompt_text: bool) -> None:
        super().__init__()
        self._as_json = as_json
        self._prompt_text = prompt_text

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. Tracebacks follow a text line, and are a field of a JSON one."""
        extra = self._extra(record)
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        if self._as_json:
            line = {"time": when, "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage(), **extra}
            return json.dumps(line | {"traceback": trace} if trace else line, default=str)
        words = [when, record.levelname, record.name, record.getMessage(), *(f"{key}={value}" for key, value in extra.items())]
        return " ".join(words).replace("\r", "\\r").replace("\n", "\\n") + (f"\n{trace}" if trace else "")

    def _extra(self, record: logging.LogRecord) -> dict[str, Any]:
        extra = {key: value for key, value in vars(record).items() if key not in _PLAIN}
        if "prompt_text" in extra and not self._prompt_text:
            extra["prompt_text"] = f"<{len(extra['prompt_text'])} characters>"
        request_id = request_id_var.get()
        return {"request_id": request_id, **extra} if request_id else extra


def setup_logging(level: str, log_format: str, *, prompt_text: bool = False, stream: TextIO | None = None) -> None:
    """Send the ``agentmem`` loggers to ``stream`` (stderr) as ``text`` or ``json`` lines. Replaces an earlier set-up."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(LogFormatter(as_json=log_format == "json", prompt_text=prompt_text))
    for name in ("agentmem", "agentmem_workers", "grpc"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level.upper())
        logger.propagate = False
