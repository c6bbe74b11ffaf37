"""sf_openvla_oft at small size on LIBERO, where that is installed: trained, compared, and evaluated."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from libero_wander import libero_dataset
from small_openvla import OFT, built, write_released

from spatial_forcing.convert.openvla import convert
from spatial_forcing.convert.options import Convert
from spatial_forcing.hosts.openvla_oft import small_options
from spatial_forcing.openvla.config import PLAIN
from spatial_forcing.train import checkpoints

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(find_spec("libero") is None, reason="needs LIBERO: pip install 'lerobot[libero]'"),
    pytest.mark.timeout(580),
]
SIZE = 56
ENV = ["--env.type=libero", "--env.task=libero_object", "--env.task_ids=[3]"]
ENV += [f"--env.observation_{side}={SIZE}" for side in ("height", "width")]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    return libero_dataset(tmp_path_factory.mktemp("libero") / "demos", size=SIZE, episodes=3, steps=20)


@pytest.fixture(scope="module")
def flags(folder, demos, tmp_path_factory) -> list[str]:
    """Of a training on top of a small plain OpenVLA, with OFT's LoRA."""
    base = write_released(tmp_path_factory.mktemp("base") / "plain", built(replace(OFT, **PLAIN)))
    policy = {
        "type": "sf_openvla_oft",
        "base_checkpoint": base,
        "tokenizer": small_options(folder)["tokenizer"],
        "gripper": "openvla",
        "inference_crop": 0.9,
        "forcing.teacher": "untrained-tiny",
        "forcing.site": "blocks.1",
        "device": "cpu",
        "push_to_hub": "false",
    }
    return [
        *(f"--policy.{name}={value}" for name, value in policy.items()),
        "--peft.method_type=LORA",
        "--dataset.repo_id=local/libero",
        f"--dataset.root={demos}",
        *("--steps=2", "--batch_size=2", "--num_workers=0", "--wandb.enable=false"),
    ]


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=540,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def test_lerobot_trains_and_evaluates_it(flags, tmp_path):
    run([str(BIN / "lerobot-train"), *flags, "--save_freq=2", f"--output_dir={tmp_path / 'run'}"], tmp_path)
    at = checkpoints(tmp_path / "run")[2]
    assert json.loads((at / "config.json").read_text())["type"] == "openvla_oft"
    assert (at / "adapter_model.safetensors").is_file()
    said = run(
        [
            *(str(BIN / "lerobot-eval"), f"--policy.path={at}", "--policy.device=cpu", *ENV),
            *("--env.episode_length=24", "--eval.n_episodes=1", "--eval.batch_size=1"),
            f"--output_dir={tmp_path / 'eval'}",
        ],
        tmp_path,
    )
    found = json.loads((tmp_path / "eval" / "eval_info.json").read_text())
    assert found["overall"]["n_episodes"] == 1, said[-2000:]


def test_it_is_compared_with_its_plain_self(flags, tmp_path):
    out = tmp_path / "compare"
    run(
        [
            *(str(BIN / "spatial-forcing"), "compare", "--out", str(out), "--seeds", "0", "--episodes", "1"),
            *("--evaluations", "1", "--videos", "0", "--probe", "none", "--teacher", "untrained-tiny"),
            *(
                "--no-controls",
                "--anyway",
                "--holdout-episodes",
                "0",
                "--workers",
                "1",
                "--",
                *flags,
                *ENV,
                "--env.episode_length=16",
            ),
        ],
        tmp_path,
    )
    assert {"plain", "forced"} <= set(json.loads((out / "results.json").read_text())["arms"])
    assert (out / "report.html").is_file()


def test_a_released_checkpoint_is_evaluated_after_conversion(folder, tmp_path):
    statistics = {"q01": [-1.0] * 7, "q99": [1.0] * 7, "mask": [True] * 6 + [False]}
    state = {"q01": [-1.0] * 8, "q99": [1.0] * 8}
    config = replace(OFT, norm_stats={"libero_object_no_noops": {"action": statistics, "proprio": state}})
    source = write_released(tmp_path / "oft", built(config))
    options = {"chunk": 2, "tokenizer": small_options(folder)["tokenizer"], "dtype": "float32"}
    convert(Convert(checkpoint=str(source), out=tmp_path / "lerobot", **options))
    run(
        [
            *(str(BIN / "spatial-forcing"), "eval", "--policies", f"oft={tmp_path / 'lerobot'}"),
            *("--episodes", "1", "--workers", "1", "--out", str(tmp_path / "eval"), "--anyway", "--", *ENV),
            "--env.episode_length=16",
        ],
        tmp_path,
    )
    assert (tmp_path / "eval" / "eval.md").is_file()
