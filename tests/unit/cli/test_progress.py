from __future__ import annotations

import pytest

from agentmem.cli.progress import PrefillProgress, model_progress
from agentmem.events import ProgressEvent


def test_model_progress_says_what_is_done_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """Bars appear on stderr, so that stdout stays for programs, and end with their work."""
    with model_progress() as report:
        report("downloading", 0.2)
        report("downloading", 1.0)
        report("converting", 0.5)
    assert "" == capsys.readouterr().out


def test_prefill_progress_can_be_stopped_any_time(capsys: pytest.CaptureFixture[str]) -> None:
    """Stopping without a bar, twice, and showing again afterwards are all fine."""
    progress = PrefillProgress()
    progress.stop()
    progress.show(ProgressEvent(1, 10))
    progress.show(ProgressEvent(10, 10, restoring=True))
    progress.stop()
    progress.stop()
    progress.show(ProgressEvent(1, 10))
    progress.stop()
    assert "" == capsys.readouterr().out
