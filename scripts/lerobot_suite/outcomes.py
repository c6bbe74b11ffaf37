"""A plug-in of pytest: writes the outcome of every test to the file that ``OUTCOMES`` names."""

import json
import os
from pathlib import Path

WORSE = ("passed", "skipped", "failed", "error")
SEEN: dict[str, str] = {}


def note(name: str, outcome: str) -> None:
    """A test is what the worst of its phases is."""
    SEEN[name] = max(SEEN.get(name, "passed"), outcome, key=WORSE.index)


def pytest_runtest_logreport(report) -> None:
    if report.when == "call" or report.outcome != "passed":
        note(report.nodeid, report.outcome)


def pytest_collectreport(report) -> None:
    if report.failed:
        note(report.nodeid, "error")


def pytest_sessionfinish(session) -> None:
    if not hasattr(session.config, "workerinput"):  # of several processes the one that hears of all
        Path(os.environ["OUTCOMES"]).write_text(json.dumps(SEEN))
