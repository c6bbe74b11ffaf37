"""Durations and progress as people read them."""

import io

import pytest
from rich.console import Console

from spatial_forcing.console import duration, stages


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (4.24, "4.2 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (125, "2 min 05 s"),
        (599.4, "9 min 59 s"),
        (725, "12 min"),
        (3723, "1 h 02 min"),
        (3599.7, "1 h 00 min"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_without_a_terminal_a_stage_is_a_line_when_it_ends_and_now_and_then(monkeypatch):
    from spatial_forcing import console

    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    said = Console(file=io.StringIO(), width=200, force_terminal=False)
    with stages(said) as bars:
        bar = bars.add_task("features", total=10)
        for _ in range(10):
            clock[0] += 10
            bars.advance(bar)
        bars.update(bar, completed=10)
        slow = bars.add_task("policy: plain", total=1000)
        for step in (0, 10, 20, 60):
            clock[0] += 100
            bars.update(slow, completed=step)
        whole = bars.add_task("report", total=1)
        bars.update(whole, completed=1)
        mixed = bars.add_task("forced", total=None, percent=True)
        bars.update(mixed, completed=0, total=30)
        bars.update(mixed, completed=30, total=30)
    lines = said.file.getvalue().splitlines()
    assert [line.partition(" after")[0] for line in lines] == [
        "features: 4 of 10",
        "features: 7 of 10",
        "features: 10 of 10",
        "policy: plain: 60 of 1000",
        "report: 1 of 1",
        "forced: 100 %",
    ]
