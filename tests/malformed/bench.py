"""What the cases are tried on: data sets, caches, checkpoints; and whether they are unharmed afterwards."""

import contextlib
import hashlib
import io
import logging
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR

import torch
from small_dataset import CAMERAS, make_dataset

from malformed.case import Case
from malformed.limits import LIMITS, in_child

SOURCE = Path(__file__).parents[2] / "src"
TEACHER = "untrained-tiny"


@dataclass
class Bench:
    """Folders that every case may look at and none may change.

    Attributes:
        data, video: LeRobotDatasets of the same frames, as images and as videos; other: other frames.
        features, raw: finished caches of ``data``, compressed and not; begun: an unfinished one.
        run: a training with a checkpoint; early: one that has none.
        policy: a checkpoint that fits the embedded world; seven: one with seven actions; small: one that fits
            ``data``.
        plain: a text file.
    """

    root: Path

    def __post_init__(self) -> None:
        self.data, self.video, self.other = (self.root / name for name in ("data", "video", "other"))
        self.features, self.raw, self.begun = (self.root / name for name in ("features", "raw", "begun"))
        self.run, self.early, self.plain = (self.root / name for name in ("run", "early", "plain.txt"))
        self.policy, self.seven, self.small = (self.root / name for name in ("policy", "seven", "small"))
        self.here = self.root / "here"
        self.built: dict[str, str] = {}

    def build(self) -> "Bench":
        """Makes all of it; takes some seconds."""
        self.root.mkdir()
        self.plain.write_text("plain text\n")
        make_dataset(self.data)
        make_dataset(self.other, seed=1)
        make_dataset(self.video, videos=True, size=64)
        for root, *options in ((self.features, "--components", "12"), (self.raw, "--codec", "raw")):
            words = ["cache", "--dataset", str(self.data), "--teacher", TEACHER, "--out", str(root), *options]
            code, said = in_this_process(words)
            assert code == 0, said
        shutil.copytree(self.features, self.begun)
        (self.begun / "manifest.json").unlink()
        code, said = in_this_process([*train_words(self), f"--output_dir={self.run}"])
        assert code == 0, said
        (self.early).mkdir()
        (self.early / "metrics.jsonl").write_text("")
        save_policy(self.policy)
        save_policy(self.seven, actions=7)
        save_policy(self.small, size=28)
        self.built = contents(self.root)
        return self

    def check_whole(self) -> None:
        """Raises AssertionError unless every byte is as it was built."""
        changed = difference(self.built, contents(self.root))
        assert not changed, f"changed on disk: {changed}"

    def filled(self, text: str) -> str:
        """``{data}`` and the like replaced by paths."""
        for name, path in vars(self).items():
            if not isinstance(path, Path):
                continue
            text = text.replace("{" + name + "}", str(path))
        return text

    def try_case(self, case: Case) -> None:
        """Raises AssertionError unless the case ends as it must."""
        shutil.rmtree(self.here, ignore_errors=True)
        self.here.mkdir()
        try:
            if case.prepare is not None:
                case.prepare(self, self.here)
            before = self._state()
            said = self._fail(case)
            wanted = (case.says,) if isinstance(case.says, str) else case.says
            for part in map(self.filled, wanted):
                assert part in said, f"not said: {part!r}\n{said[-2000:]}"
            assert said.strip()
            assert "Traceback" not in said, said[-3000:]
            changed = difference(before, self._state())
            assert not changed, f"changed on disk: {changed}"
            if case.afterwards:
                code, said = in_this_process([self.filled(word) for word in case.afterwards])
                assert code == 0, f"afterwards: {said[-2000:]}"
        finally:
            for path in [self.here, *self.here.rglob("*")]:
                if not path.is_symlink():
                    path.chmod(0o755)
            shutil.rmtree(self.here)

    def _state(self) -> dict[str, str]:
        """The case's own folder byte by byte; of the rest, which all cases share, sizes and times."""
        stats = {str(path): path.lstat() for path in self.root.rglob("*") if self.here not in path.parents}
        del stats[str(self.here)]
        # A folder's time changes with a lock that came and went.
        shared = {
            name: str(stat.st_mode) + f" {stat.st_size} {stat.st_mtime_ns}" * (not S_ISDIR(stat.st_mode))
            for name, stat in stats.items()
        }
        return shared | contents(self.here)

    def _fail(self, case: Case) -> str:
        """What the case says as it fails."""
        if case.call is not None:
            with warnings.catch_warnings(), torch.random.fork_rng():
                warnings.simplefilter("ignore")
                try:
                    case.call(self, self.here)
                except case.error as error:
                    return str(error)
                except Exception as error:
                    raise AssertionError(f"raised {type(error).__name__}: {error}") from error
                raise AssertionError("raised nothing")
        words = [self.filled(word) for word in case.argv]
        if case.under == "a process":
            code, said = in_own_process(words)
            assert code not in (0, -1), said[-3000:]
            assert last_line(said).startswith("spatial-forcing: "), said[-3000:]
            return last_line(said)
        environment = dict(case.environment)
        if case.under in LIMITS:
            code, said = in_child(case.under, lambda: in_this_process(words, environment))
        else:
            code, said = in_this_process(words, environment)
        assert code == 2, f"exit status {code}\n{said[-2000:]}"
        ours = said.count("spatial-forcing: ")
        assert ours == 1 or (ours == 0 and "--help" in said), f"{ours} messages\n{said[-2000:]}"
        return " ".join(said.split())


def in_this_process(words: list[str], environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit status and output of ``spatial-forcing`` with these words."""
    from spatial_forcing.cli import main

    kept, variables, level = sys.argv, dict(os.environ), logging.getLogger().level
    said, ours = io.StringIO(), logging.getLogger("spatial_forcing")
    handlers, hook = list(ours.handlers), sys.excepthook
    sys.argv = ["spatial-forcing", *words]
    os.environ.update(environment or {})
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
            try:
                main()
                code = 0
            except SystemExit as stopped:
                code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
            except Exception as error:
                code, _ = 1, said.write(f"\nTraceback: {type(error).__name__}: {error}")
    finally:
        sys.argv, sys.excepthook = kept, hook
        ours.handlers[:], ours.propagate = handlers, True
        logging.getLogger().setLevel(level)
        for name in os.environ.keys() - variables.keys():
            del os.environ[name]
        os.environ.update(variables)
    return code, said.getvalue()


def in_own_process(words: list[str]) -> tuple[int, str]:
    """Exit status and output of an installed command."""
    program = Path(sys.executable).parent / words[0]
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [program, *words[1:]], capture_output=True, text=True, env=environment, check=False, timeout=900
    )
    return done.returncode, done.stdout + done.stderr


def last_line(said: str) -> str:
    return said.strip().splitlines()[-1] if said.strip() else ""


def train_words(bench: Bench, *more: str) -> list[str]:
    """A short training, but for its output folder."""
    return [
        *("train", "--policy.type=sf_tiny", "--policy.push_to_hub=false", "--policy.image_size=28"),
        *("--policy.width=32", "--policy.heads=2", f"--policy.forcing.cache={bench.features}"),
        *("--dataset.repo_id=local/data", f"--dataset.root={bench.data}", "--num_workers=0"),
        *("--batch_size=2", "--steps=1", *more),
    ]


def save_policy(root: Path, size: int = 112, actions: int = 4) -> None:
    """A checkpoint of an untrained policy."""
    from lerobot.configs import FeatureType, PolicyFeature

    from spatial_forcing.hosts.tiny_policy import TinyConfig, TinyPolicy, make_tiny_pre_post_processors

    inputs = {key: PolicyFeature(FeatureType.VISUAL, (3, size, size)) for key in CAMERAS}
    inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (4,))
    config = TinyConfig(image_size=size, width=32, heads=2, device="cpu")
    config.input_features = inputs
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (actions,))}
    TinyPolicy(config).save_pretrained(root)
    stats = {"observation.state": 4, "action": actions}
    numbers = {key: {"mean": torch.zeros(n), "std": torch.ones(n)} for key, n in stats.items()}
    for processor in make_tiny_pre_post_processors(config, numbers):
        processor.save_pretrained(root)


def contents(root: Path) -> dict[str, str]:
    """What lies below a folder: for each file a sum, for each folder that it is one."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_file():
            readable = os.access(path, os.R_OK)
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if readable else "not readable"
        else:
            found[name] = "folder"
    return found


def difference(before: dict[str, str], after: dict[str, str]) -> list[str]:
    lost = [f"lost {name}" for name in before if name not in after]
    new = [f"new {name}" for name in after if name not in before]
    return lost + new + [f"changed {n}" for n in before if n in after and before[n] != after[n]]
