"""How far is a resumed run from one straight through, with forcing and with plain LeRobot?

    PYTHONPATH=tests:examples python benchmarks/resume.py

Small policies of LeRobot's own classes (`tests/small_policies.py`), through LeRobot's trainer as it is: six
steps straight through, twice, and three steps resumed for three. Writes benchmarks/resume.json.
"""

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from record import made_with
from safetensors.torch import load_file
from small_dataset import make_dataset
from small_policies import small_config, small_parts
from torch import Tensor
from training_configs import train_config

from lerobot_policy_spatial_forcing.configuration_sf import CLASSES
from lerobot_policy_spatial_forcing.forcing import ForcingConfig
from spatial_forcing.train import checkpoints, train_or_continue

STEPS = 6
TINY = {"image_size": 28, "width": 32, "depth": 4, "heads": 2, "device": "cpu"}


@dataclass
class Args:
    """Options of the benchmark."""

    policies: tuple[str, ...] = ("tiny", "smolvla", "act")
    """Types whose record says how a small one is made, or tiny."""
    out: Path = Path(__file__).parent / "resume.json"


def config_of(kind: str, forced: bool, folder: Path) -> Any:
    forcing = {"teacher": "untrained-tiny"} if forced else None
    if kind != "tiny":
        return small_config(kind, folder, forcing=forcing)
    return (
        CLASSES[kind](**TINY, forcing=ForcingConfig(**forcing))
        if forcing
        else CLASSES[kind].plain_class(**TINY)
    )


def weights_of(run: Path, step: int) -> dict[str, Tensor]:
    return load_file(checkpoints(run)[step] / "model.safetensors")


def largest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max((a[name] - b[name]).abs().max().item() for name in a)


def length(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return sum((a[name].double() - b[name].double()).square().sum().item() for name in a) ** 0.5


def compared(
    kind: str, forced: bool, dataset: Path, folder: Path
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """(differences, random state halfway) of runs of a policy."""
    half = STEPS // 2

    def train(name: str) -> Path:
        out = folder / f"{kind}-{'forced' if forced else 'plain'}-{name}"
        run = train_config(
            config_of(kind, forced, folder), dataset, out, steps=STEPS, batch_size=2, seed=3, save_every=half
        )
        with small_parts(kind):
            return train_or_continue(run)

    run, again = train("run"), train("again")
    straight, halfway = weights_of(run, STEPS), weights_of(run, half)
    state = load_file(checkpoints(run)[half].parent / "training_state" / "rng_state.safetensors")
    found = {"straight_again": largest(straight, weights_of(again, STEPS))}
    last = run / "checkpoints" / "last"
    shutil.rmtree(checkpoints(run)[STEPS].parent)
    last.unlink()
    last.symlink_to(checkpoints(run)[half].parent.name)
    resumed = weights_of(train("run"), STEPS)
    found["resumed"] = largest(straight, resumed)
    found["share_of_the_way"] = length(straight, resumed) / length(straight, halfway)
    return found, state


def main(args: Args) -> None:
    torch.set_num_threads(1)
    made, results = made_with(args), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        squares = make_dataset(folder / "squares", episodes=2, frames=14, size=28)
        images = make_dataset(folder / "pictures", episodes=2, frames=14, size=(40, 60))
        for kind in args.policies:
            dataset = squares if kind == "tiny" else images
            (plain, state), (forced, same) = (compared(kind, on, dataset, folder) for on in (False, True))
            equal = all(torch.equal(state[key], same[key]) for key in state)
            results[kind] = {"plain": plain, "forced": forced, "random_state_equal": equal}
            print(kind, json.dumps(results[kind]), flush=True)
    args.out.write_text(json.dumps(made | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args))
