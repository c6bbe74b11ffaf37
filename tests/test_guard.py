"""How programs end when something goes wrong: one message at the end of what is on the screen."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from spatial_forcing.cli import AGAIN, KEPT, WITH_FLAGS, main
from spatial_forcing.command_names import WITH_LEROBOTS_FLAGS
from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.guard import (
    TERMINATED,
    guarded,
    message_of,
    message_of_ours,
    runs_lerobot,
    terminable,
)


def ending(capsys, error: BaseException) -> tuple[int, str]:
    """Exit status and standard error of a command that raises this."""

    def run() -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        guarded(run, lambda: "It is all there.")
    return int(stopped.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["qqq"], "Unknown command 'qqq'. Available: cache, calibration, collect"),
        (["cahce", "--out", "x"], "Did you mean 'cache' or 'compare'?"),
        (["cache", "verfy"], "Unknown subcommand of cache 'verfy'. Did you mean 'verify'?"),
        (["doctr", "--help"], "Did you mean 'doctor' or"),
        (
            ["compare", "--out", "x", "--policy.type=act", "--steps=3"],
            "spatial-forcing compare --out <folder> -- --policy.type=<type> --steps=<steps> ...",
        ),
        (["compare", "transfer", "--of", "x", "--env.task", "y"], "--env.task: LeRobot's flags"),
        (["eval", "--policies", "a=x", "--env.type=libero", "--", "--env.task=y"], "come last, behind --"),
    ],
)
def test_mistyped_commands_name_the_nearest(monkeypatch, capsys, words, message):
    monkeypatch.setattr(sys, "argv", ["spatial-forcing", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_mistyped_options_name_the_nearest(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["spatial-forcing", "cache", "--datset", "x"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "--dataset" in capsys.readouterr().err


def test_errors_of_ours_and_of_the_machine_are_one_message(capsys, tmp_path):
    assert ending(capsys, SpatialForcingError("Too flat.")) == (2, "spatial-forcing: Too flat.\n")
    assert ending(capsys, UnknownNameError("task", "a", "b"))[1].startswith("spatial-forcing: Unknown task")
    with pytest.raises(OSError, match="No such file") as missing:
        (tmp_path / "nowhere" / "x").write_text("")
    assert ending(capsys, missing.value) == (
        2,
        f"spatial-forcing: {tmp_path}/nowhere/x: No such file or directory.\n",
    )
    assert "Free some space" in ending(capsys, OSError(28, "No space left on device"))[1]


def test_bugs_keep_their_traceback(capsys):
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 // 0, lambda: "")
    assert message_of(OSError("of somebody's own making")) is None


def test_an_interrupted_command_says_what_is_kept(capsys):
    code, said = ending(capsys, KeyboardInterrupt())
    assert (code, said) == (130, "\nspatial-forcing: stopped. It is all there.\n")
    assert KEPT["cache"] == KEPT["collect"] == KEPT["demo"] == AGAIN
    assert "No result was written" in KEPT["probe"]


class Bad:
    """A data set whose frames cannot be had."""

    def __init__(self, error: type[SpatialForcingError], *about: object):
        self.error, self.about = error, about

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        raise self.error(*self.about)


@pytest.mark.parametrize(
    "bad", [Bad(SpatialForcingError, "Bent."), Bad(UnknownNameError, "task", "a", ["b"])]
)
def test_errors_in_worker_processes_are_found(bad):
    with pytest.raises(Exception, match="Caught") as caught:
        next(iter(DataLoader(bad, num_workers=1, multiprocessing_context="fork")))
    with pytest.raises(SpatialForcingError) as raised:
        bad[0]
    assert message_of_ours(caught.value) == str(raised.value)


@pytest.mark.parametrize(
    ("program", "is_lerobot"),
    [
        ("/usr/bin/lerobot-train", True),
        ("/x/lerobot/scripts/lerobot_train.py", True),
        ("my_lerobot_loop.py", False),
        ("spatial-forcing", False),
        ("", False),
    ],
)
def test_only_lerobots_commands_lose_their_traceback(program, is_lerobot):
    assert runs_lerobot(program) == is_lerobot


def last_words(program: str, error: str, *flags: str) -> str:
    """Standard error of a program of this name that ends with an error."""
    code = f"""
    import sys
    from spatial_forcing.errors import SpatialForcingError
    from spatial_forcing.guard import say_last
    sys.argv[0] = {program!r}
    say_last(), say_last()

    class Bar:
        def __del__(self):
            print("bar", file=sys.stderr)

    def run():
        bar = Bar()
        raise {error}

    run()
    """
    done = subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    return done.stderr


def test_in_lerobots_commands_our_errors_are_the_last_thing_on_the_screen():
    ours, other = "SpatialForcingError('Too flat.')", "ValueError('Too high.')"
    assert last_words("/bin/lerobot-train", ours) == "bar\nspatial-forcing: Too flat.\n"
    assert "Traceback" in last_words("/bin/lerobot-train", other)
    assert "Traceback" in last_words("/home/me/train.py", ours)
    assert "Traceback" in last_words("/bin/lerobot-train", ours, "-X", "dev")


TEMPORARY = """
import sys, tempfile, time
from spatial_forcing.guard import guarded, terminable

def run():
    with tempfile.TemporaryDirectory() as folder:
        print(folder, flush=True)
        time.sleep(100)

with terminable():
    guarded(run, lambda: "It is all there.")
"""


def test_sigterm_cleans_up_as_ctrl_c_does():
    """As a cluster ends jobs, and `kill`."""
    process = subprocess.Popen(
        [sys.executable, "-c", TEMPORARY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    assert folder.is_dir()
    process.terminate()
    _, said = process.communicate(timeout=20)
    assert process.returncode == TERMINATED
    assert said == "\nspatial-forcing: stopped. It is all there.\n"
    assert not folder.exists()


def say_and_sleep(connection: Connection) -> None:
    connection.send("up")
    time.sleep(100)


def test_a_forked_copy_ends_by_sigterm_as_ever():
    here, there = Pipe()
    with terminable():
        handler = signal.getsignal(signal.SIGTERM)
        process = get_context("fork").Process(target=say_and_sleep, args=(there,), daemon=True)
        process.start()
        assert here.poll(20)
        process.terminate()
        process.join(20)
    assert process.exitcode == -signal.SIGTERM
    assert callable(handler)
    assert signal.getsignal(signal.SIGTERM) is not handler


def test_who_ignores_sigterm_goes_on_doing_so():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with terminable():
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_every_command_with_lerobots_flags_is_known():
    assert set(WITH_LEROBOTS_FLAGS) == set(WITH_FLAGS)
