"""Console output of long-running commands: progress bars, durations."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

# Without a terminal a stage is heard of after so many seconds, if it has come on by that share.
EVERY, SHARE = 30.0, 0.05


def narrow_table(*columns: Any, **more: Any) -> "Table":
    """A table with little but its text, for 80 columns; arguments as of rich's ``Table``."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(*columns, box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0), **more)


def stages(console: "Console") -> "Progress":
    """Progress bars, one per stage, with elapsed and remaining time; periodic lines without a terminal."""
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Done(ProgressColumn):
        """How much of a stage is done, as :func:`done` says it."""

        def render(self, task: Any) -> Text:
            return Text(done(task), style="progress.download")

    if not console.is_terminal:
        return lines(console)
    return Progress(
        TextColumn("{task.description:<32}"),
        BarColumn(bar_width=30),
        Done(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def lines(console: "Console") -> "Progress":
    """Progress as plain lines for logs: one when a stage ends, and periodic ones before."""
    from rich.progress import Progress

    class Lines(Progress):
        """Progress display that prints lines instead of drawing bars."""

        def __init__(self) -> None:
            super().__init__(console=console, disable=True)
            self.said: dict[Any, tuple[float, float]] = {}

        def update(self, task_id: Any, **changed: Any) -> None:
            super().update(task_id, **changed)
            self.say(task_id)

        def advance(self, task_id: Any, advance: float = 1) -> None:
            super().advance(task_id, advance)
            self.say(task_id)

        def say(self, task_id: Any) -> None:
            task, now = self._tasks[task_id], time.monotonic()
            when, before = self.said.setdefault(task_id, (now, 0.0))
            on = task.completed - before >= SHARE * (task.total or 0.0) and task.completed > before
            if when == inf or not (task.finished or (on and now - when >= EVERY)):
                return
            self.said[task_id] = (inf if task.finished else now), task.completed
            took = duration(task.elapsed or 0.0)
            self.console.print(f"{task.description}: {done(task)} after {took}", highlight=False)

    return Lines()


def done(task: Any) -> str:
    """How much of a stage is done: "40 of 387"; "40 %" of one added with ``percent=True``."""
    if task.fields.get("percent"):
        return f"{100 * task.completed / (task.total or 1.0):.0f} %"
    return f"{task.completed:g}" + ("" if task.total is None else f" of {task.total:g}")


def duration(seconds: float) -> str:
    """Formats seconds as "4.2 s", "3 min 05 s", "12 min" (from ten minutes on) or "1 h 02 min"."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 10:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


@contextmanager
def timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    """Measures the seconds of a stage, added to those of earlier attempts, failed ones included."""
    start = time.perf_counter()
    try:
        yield
    finally:
        timings[stage] = round(timings.get(stage, 0.0) + time.perf_counter() - start, 1)
