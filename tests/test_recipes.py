"""The recipes: what they say of themselves, that their flags exist, and that they train at small size."""

import importlib.util
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tyro
from reference import reference
from small_checkpoints import save_small
from small_dataset import make_dataset
from small_openvla import OFT, built, write_released
from small_policies import HOSTS, options_of, small_parts

from spatial_forcing.cache.options import Cache
from spatial_forcing.openvla.config import PLAIN
from spatial_forcing.teachers import RECORDS

ROOT = Path(__file__).parents[1]
# Those of published settings; the others are studies, whose results are in docs/.
STUDIES = ("studies", "libero_small")
RECIPES = {path.stem: path for path in sorted((ROOT / "recipes").glob("*.sh")) if path.stem not in STUDIES}
# By recipe, the policy that it trains.
LEROBOT = {
    "openvla_oft_libero": "openvla_oft",
    "pi0_robotwin2": "pi0",
    "pi05_libero": "pi05",
    "smolvla_libero": "smolvla",
}
TEACHER = "untrained-tiny"
# Where tokens are read of policies that have not four blocks at small size.
SITES = {"openvla_oft": "blocks.1"}


@pytest.fixture(scope="module")
def costs() -> ModuleType:
    """scripts/recipe_cost.py."""
    found = importlib.util.spec_from_file_location("recipe_cost", ROOT / "scripts" / "recipe_cost.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def said(recipe: str) -> dict[str, str]:
    """What the head of a recipe says, by its first word."""
    head = [line[2:] for line in RECIPES[recipe].read_text().splitlines() if line.startswith("# ")]
    found: dict[str, str] = {}
    for line in head:
        if match := re.match(r"([A-Z]\w+)  +(.*)", line):
            name, rest = match.groups()
            found[name] = rest
        elif line.startswith("    ") and found:
            found[name] += f" {line.strip()}"  # pyright: ignore[reportPossiblyUnboundVariable]
    return found


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_says_what_it_takes_and_what_to_expect(recipe):
    found = said(recipe)
    assert found.keys() >= {"Hardware", "Memory", "Hours", "Expected"}
    for what in ("Memory", "Hours"):
        assert found[what].startswith("computed: "), "nothing of this was measured"
    assert "arXiv" in found["Expected"] or "documentation" in found["Expected"]
    assert "Nobody has run this file yet." in found["Expected"]


def test_the_expected_numbers_are_the_published_ones():
    paper = json.loads(reference("paper.json").read_text())
    told = {name: set(map(float, re.findall(r"\d+\.\d", said(name)["Expected"]))) for name in RECIPES}
    libero, ablation = paper["libero"], paper["ablation_target_libero"]
    assert told["openvla_oft_libero"] >= {*libero["Spatial Forcing"], *libero["OpenVLA-OFT"]}
    assert told["openvla_oft_libero_one_gpu"] >= {
        *ablation["VGGT with position embedding"],
        *ablation["none"],
    }
    repeated = next(v for k, v in paper["independent"].items() if "VEGA" in k)
    assert told["pi0_robotwin2"] >= {*repeated["OpenVLA-OFT"], *repeated["Spatial Forcing"]}


@pytest.mark.parametrize("recipe", RECIPES)
def test_features_are_stored_before_and_read_by_the_training(costs, recipe):
    cache, train = costs.commands_of(RECIPES[recipe])
    assert cache[0] == "cache"
    options = tyro.cli(Cache, args=cache[1:])
    assert options.teacher in RECORDS
    flags = dict(flag.removeprefix("--").partition("=")[::2] for flag in train[1:])
    assert flags["policy.forcing.cache"] == str(options.out)
    assert flags["dataset.repo_id"] == options.dataset


def test_more_flags_come_last(costs):
    flags = costs.training_flags(RECIPES["openvla_oft_libero_one_gpu"], "goal", "--steps=7", "--a=b c")
    assert flags[-2:] == ["--steps=7", "--a=b c"]
    assert "--dataset.repo_id=lerobot/libero_goal_image" in flags


def small_flags(kind: str, parts: Path, data: tuple[Path, Path], out: Path) -> list[str]:
    """Flags after a recipe's own that make it small: policy, data and their features, steps."""
    dataset, cache = data
    small: dict[str, Any] = options_of(kind, parts)
    policy = {name: value for name, value in small.items() if name not in ("device", "push_to_hub")}
    base = {"policy.pretrained_path": str(save_small(kind, parts, out / "base"))}
    if kind == "openvla_oft":  # it begins with a checkpoint in the released layout, and has its sizes
        del policy["architecture"]
        base = {"policy.base_checkpoint": str(write_released(out, built(replace(OFT, **PLAIN))))}
    more = {f"policy.{name}": json.dumps(value).strip('"') for name, value in policy.items()}
    more |= base | {
        "policy.device": "cpu",
        "policy.forcing.cache": str(cache),
        "policy.forcing.site": SITES.get(kind, "blocks.3"),
        "dataset.repo_id": "local/small",
        "dataset.root": str(dataset),
        "num_workers": "0",
        "batch_size": "2",
        "steps": "2",
        "save_freq": "2",
        "output_dir": str(out / "run"),
    }
    if kind.startswith(("pi", "openvla")):
        more["policy.dtype"] = "float32"
    return [f"--{name}={value}" for name, value in more.items()]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[Path, Path]:
    """A small data set and its features."""
    from spatial_forcing.cache.extract import extract
    from spatial_forcing.teachers import load_teacher

    folder = tmp_path_factory.mktemp("recipes")
    dataset = make_dataset(folder / "small", episodes=2, frames=6, size=(40, 60))
    return dataset, extract(dataset, load_teacher(TEACHER), TEACHER, folder / "features")


@pytest.mark.parametrize("recipe", LEROBOT)
def test_the_flags_of_a_recipe_are_lerobots_and_ours(costs, folder, data, tmp_path, recipe):
    from spatial_forcing.flags import read_config

    kind = LEROBOT[recipe]
    plain = costs.training_flags(RECIPES[recipe])
    config: Any = read_config([*plain, *small_flags(kind, folder, data, tmp_path)])
    assert config.policy.type == f"sf_{kind}"
    assert config.policy.forcing.loss_weight == 0.5
    with pytest.raises(Exception, match=r"forcing\.wieght"):
        read_config([*plain, "--policy.forcing.wieght=1"])


@pytest.mark.system
@pytest.mark.parametrize("recipe", LEROBOT)
def test_a_recipe_trains_at_small_size(costs, folder, data, tmp_path, monkeypatch, recipe):
    import sys

    from spatial_forcing.inspection.look import inspect_path
    from spatial_forcing.train import checkpoints
    from spatial_forcing.train_command import TrainCommand

    kind = LEROBOT[recipe]
    monkeypatch.setattr(sys, "argv", sys.argv)
    flags = costs.training_flags(RECIPES[recipe], *small_flags(kind, folder, data, tmp_path))
    with small_parts(kind):
        TrainCommand().run(flags)
        found = inspect_path(checkpoints(tmp_path / "run")[2])
    assert found.loads, found.text()
    site = SITES.get(kind, "blocks.3")
    assert found.facts["projector"][0].startswith(f"at {site} toward the features of {TEACHER} in ")
    assert ("adapter" in found.facts) == ("--peft.method_type=LORA" in flags), shlex.join(flags)


def test_every_recipe_of_lerobots_policies_has_a_small_one():
    assert set(LEROBOT.values()) <= set(HOSTS)
    assert {*LEROBOT, "openvla_oft_libero_one_gpu"} == set(RECIPES)  # which calls the other one
