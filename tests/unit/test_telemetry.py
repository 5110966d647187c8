from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
from prometheus_client import generate_latest

from agentmem.telemetry import LogFormatter, Metrics, request_id_var, setup_logging
from agentmem.types import MissReason, ReuseReport, Usage
from agentmem.views import ServerStats


@pytest.fixture(autouse=True)
def _loggers_as_they_were() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("agentmem", "grpc")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"agentmem_{name}", labels)


def test_a_reply_is_counted() -> None:
    """Tokens by tier, times per token, and why the first token was missed."""
    metrics = Metrics()
    metrics.reply(Usage(3, 9, 5, 0.5, 1.0, 3.0, 5, 0.25), ReuseReport(device=4, host=1, disk=2, computed=3, reason=MissReason.EVICTED))
    assert (3, 5, 3) == (
        value(metrics, "prompt_tokens_total"),
        value(metrics, "generation_tokens_total"),
        value(metrics, "prefix_cache_computed_tokens_total"),
    )
    assert [4, 1, 2, 0] == [value(metrics, "prefix_cache_hit_tokens_total", tier=tier) for tier in ("device", "host", "disk", "peer")]
    assert 1 == value(metrics, "prefix_cache_misses_total", reason="evicted")
    assert (1, 0.25) == (value(metrics, "attended_share_count"), value(metrics, "attended_share_sum"))
    assert (0.5, 1.0, 0.5) == (
        value(metrics, "queue_seconds_sum"),
        value(metrics, "time_to_first_token_seconds_sum"),
        value(metrics, "time_per_output_token_seconds_sum"),
    )


def test_a_reply_without_tokens_has_no_token_times() -> None:
    """A reply that was cancelled before its first token does not pull the means down; one token has no time between tokens."""
    metrics = Metrics()
    metrics.reply(Usage(), ReuseReport())
    assert (0, 0) == (value(metrics, "time_to_first_token_seconds_count"), value(metrics, "attended_share_count"))
    metrics.reply(Usage(output_tokens=1, first_token_seconds=1.0, total_seconds=1.0), ReuseReport())
    assert (1, 0) == (value(metrics, "time_to_first_token_seconds_count"), value(metrics, "time_per_output_token_seconds_count"))


def test_the_replicas_numbers_are_read_at_the_scrape() -> None:
    """Gauges and counters show what stats() says at that moment; words are left out; no label names a session or a tenant."""
    metrics = Metrics()
    running = 1
    metrics.watch(lambda: ServerStats(model="m", running=running, tokens_prefilled=7, draining=True))
    assert (1, 7, 1) == (value(metrics, "running"), value(metrics, "tokens_prefilled_total"), value(metrics, "draining"))
    running = 2
    assert 2 == value(metrics, "running")
    page = generate_latest(metrics.registry).decode()
    assert "agentmem_model" not in page
    assert not [line for line in page.splitlines() if "session_id" in line or "tenant" in line]


def test_what_only_grows_is_a_counter() -> None:
    """Tiers and queues are gauges; what was evicted, sealed, re-encoded, drafted and spent is counted, so that rates can be taken of it."""
    metrics = Metrics()
    metrics.watch(lambda: ServerStats(host_bytes_used=1, seal_queue=2, seals_parked=3, seals_done=4, tokens_reencoded=5, blocks_evicted=6))
    assert [1, 2, 3] == [value(metrics, name) for name in ("host_bytes_used", "seal_queue", "seals_parked")]
    assert [4, 5, 6] == [value(metrics, f"{name}_total") for name in ("seals_done", "tokens_reencoded", "blocks_evicted")]
    metrics = Metrics()
    metrics.watch(lambda: ServerStats(tokens_drafted=1, tokens_accepted=2, guided_seconds=0.5, guided_step_seconds=1.5))
    names = ("tokens_drafted", "tokens_accepted", "guided_seconds", "guided_step_seconds")
    assert [1, 2, 0.5, 1.5] == [value(metrics, f"{name}_total") for name in names]


def lines(log_format: str, *, prompt_text: bool = False, level: str = "info") -> tuple[logging.Logger, io.StringIO]:
    stream = io.StringIO()
    setup_logging(level, log_format, prompt_text=prompt_text, stream=stream)
    return logging.getLogger("agentmem.test"), stream


def test_json_lines() -> None:
    """One object a line, with the extra fields and the request id."""
    log, stream = lines("json")
    token = request_id_var.set("abc")
    log.info("two\nlines %d", 5, extra={"tokens": 7})
    request_id_var.reset(token)
    log.debug("too quiet")
    [line] = stream.getvalue().splitlines()
    seen = json.loads(line)
    assert seen.pop("time").endswith("+00:00")
    assert {
        "level": "info", "logger": "agentmem.test", "message": "two\nlines 5", "request_id": "abc", "tokens": 7,
    } == seen  # fmt: skip


def test_text_lines() -> None:
    """Words in a fixed order, fields as key=value, a line break never ends the line."""
    log, stream = lines("text")
    log.warning("two\nlines", extra={"tokens": 7})
    [line] = stream.getvalue().splitlines()
    assert "WARNING agentmem.test two\\nlines tokens=7" == line.partition(" ")[2]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_prompts_are_not_logged_unless_asked_for(log_format: str) -> None:
    """By default only the length of what people and models wrote is logged."""
    log, stream = lines(log_format)
    log.info("turn", extra={"prompt_text": "my secret"})
    assert "secret" not in stream.getvalue()
    assert "<9 characters>" in stream.getvalue()
    log, stream = lines(log_format, prompt_text=True)
    log.info("turn", extra={"prompt_text": "my secret"})
    assert "my secret" in stream.getvalue()


@pytest.mark.parametrize("as_json", [True, False])
def test_tracebacks(as_json: bool) -> None:
    """A traceback is kept, in JSON within the one line."""
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError as error:
        record = logging.LogRecord("agentmem", logging.ERROR, "f", 1, "failed", (), (type(error), error, error.__traceback__))
    line = LogFormatter(as_json=as_json, prompt_text=False).format(record)
    assert "ZeroDivisionError" in line
    assert as_json is (len(line.splitlines()) == 1)


def test_setting_up_twice_writes_once() -> None:
    """A second set-up replaces the first."""
    log, first = lines("text")
    log, second = lines("text")
    log.info("once")
    assert "" == first.getvalue()
    assert 1 == second.getvalue().count("once")
