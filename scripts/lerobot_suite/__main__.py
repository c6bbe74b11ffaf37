"""LeRobot's own test suite must not notice us: `make test-lerobot`.

Runs the tests of release 0.6.1 with this package imported as LeRobot imports it, every patch switched on, and
compares test by test with LeRobot alone. A test that passes alone and does not pass with us is an error.

By default whatever does not pass with us is run again without us: only a test that passes there can be ours.
With `--whole` the suite runs whole both ways. The archive (`--archive`) is unpacked into a temporary folder;
without a network about 140 of the tests fail either way.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ARCHIVE = ROOT.parent / "shared" / "lerobot" / "tests-0.6.1.tar.gz"
# What needs neither hardware nor a device: 2196 tests.
FOLDERS = ("configs", "datasets", "policies", "processor", "training", "optim", "utils", "scripts", "envs")
DEADLINE = 1500  # seconds a run may take
A_COMMAND = 100_000  # characters of test names


def main() -> int:
    """Runs, compares, prints what it found; 0 if no test notices us."""
    args = options()
    if not args.archive.is_file():
        print(
            f"{args.archive} is not there: LeRobot's test suite cannot run. Say where it is with --archive."
        )
        return 2
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="lerobot-suite-") as folder:
        suite = Path(folder)
        with tarfile.open(args.archive) as archive:
            archive.extractall(suite, filter="data")
        chosen = args.tests or default_tests(suite)
        ours = run(suite, "with_us", chosen, args.workers)
        print(summary("with this package, all patches on", ours, start))
        others = (
            chosen if args.whole else sorted(name for name, outcome in ours.items() if outcome != "passed")
        )
        alone = run(suite, "without_us", others, args.workers) if others else {}
        print(summary("without it" + ("" if args.whole else ", of those that did not pass"), alone, start))
        noticed = [
            name for name, outcome in alone.items() if outcome == "passed" and ours.get(name) != "passed"
        ]
        again = run(suite, "with_us", noticed, 1) if noticed else {}
    noticed = [name for name in noticed if again.get(name) != "passed"]
    for name in noticed:
        print(f"passes without this package, not with it ({ours.get(name, 'is gone')}): {name}")
    unsteady = len(again) - len(noticed)
    print(
        f"{len(noticed)} of LeRobot's tests notice this package"
        + (f" ({unsteady} passed the second time)" if unsteady else "")
        + f"; {time.perf_counter() - start:.0f} s"
    )
    if not any(outcome == "passed" for outcome in ours.values()):
        print("No test passed at all: something is wrong with the suite or this environment.")
        return 2
    return 1 if noticed else 0


def options() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "tests", nargs="*", help="some of LeRobot's tests, as pytest names them; all by default"
    )
    parser.add_argument("--archive", type=Path, default=ARCHIVE, help="LeRobot's test suite")
    parser.add_argument("--whole", action="store_true", help="run everything without this package, too")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    return parser.parse_args()


def default_tests(suite: Path) -> list[str]:
    """The folders that need neither hardware nor a device, and the single files."""
    folders = [f"tests/{name}" for name in FOLDERS]
    return folders + sorted(f"tests/{path.name}" for path in (suite / "tests").glob("test_*.py"))


def run(suite: Path, how: str, tests: list[str], workers: int) -> dict[str, str]:
    """Outcome by test: passed, skipped, failed; of a file that cannot be read, error."""
    if sum(map(len, tests)) > A_COMMAND:  # longer than a command line may be
        half = len(tests) // 2
        return run(suite, how, tests[:half], workers) | run(suite, how, tests[half:], workers)
    outcomes = suite / f"{how}.json"
    outcomes.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "--no-header", "-p", "no:cacheprovider"]
    command += ["-p", how, "-p", "outcomes", "--timeout", "120", "-W", "ignore"]
    command += ["-n", str(workers), "--dist", "loadfile"] if workers > 1 else []
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])),
        "OUTCOMES": str(outcomes),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(suite / "hf"),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    log = suite / f"{how}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, *tests],
            cwd=suite,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(timeout=DEADLINE)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if not outcomes.is_file():
        raise SystemExit(f"LeRobot's tests did not run ({how}):\n{log.read_text()[-3000:]}")
    return json.loads(outcomes.read_text())


def summary(what: str, outcomes: dict[str, str], start: float) -> str:
    """How many tests did what, in a line."""
    counts = {kind: list(outcomes.values()).count(kind) for kind in ("passed", "skipped", "failed", "error")}
    said = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    return f"{what}: {len(outcomes)} tests, {said or 'none'}; {time.perf_counter() - start:.0f} s so far"


if __name__ == "__main__":
    sys.exit(main())
