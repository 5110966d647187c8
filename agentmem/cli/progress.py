"""Progress bars on stderr, for what takes long: downloading and converting a model, a long prefill."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from agentmem.events import ProgressEvent


@contextmanager
def model_progress() -> Iterator[Callable[[str, float], None]]:
    """Yield what ``load_model`` reports to: a name for the work and the part done, 0 to 1. A bar shows until its work is done."""
    from rich.console import Console
    from rich.progress import Progress, TaskID

    tasks: dict[str, TaskID] = {}
    bars = Progress(console=Console(stderr=True), transient=True)

    def report(name: str, part: float) -> None:
        if name not in tasks:
            tasks[name] = bars.add_task(name, total=1.0)
            bars.start()
        bars.update(tasks[name], completed=part)
        if bars.finished:
            bars.stop()

    try:
        yield report
    finally:
        bars.stop()


class PrefillProgress:
    """A bar for the context of one reply, drawn only when the server reports progress, gone with the first token."""

    def __init__(self) -> None:
        self._done: Callable[[], None] | None = None
        self._update: Callable[[ProgressEvent], None] | None = None

    def show(self, event: ProgressEvent) -> None:
        """Draw or move the bar."""
        if self._update is None:
            self._start()
        if self._update is not None:
            self._update(event)

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        bars = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=Console(stderr=True), transient=True)
        task = bars.add_task("reading", total=None)
        bars.start()
        self._done = bars.stop
        self._update = lambda event: bars.update(
            task, description="restoring" if event.restoring else "computing", completed=event.prefilled, total=event.total
        )

    def stop(self) -> None:
        """Remove the bar; does nothing when there is none."""
        if self._done is not None:
            self._done()
        self._done = self._update = None
