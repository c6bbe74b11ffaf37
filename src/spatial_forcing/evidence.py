"""Gathers what a comparison left on disk: tokens for the depth probe, curves, evaluations, pictures.

Shapes: F frames, V views, H W pixels or rows and columns, C channels.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spatial_forcing.control import CONTROLS
from spatial_forcing.evaluate import LoadedPolicy
from spatial_forcing.files import write_json
from spatial_forcing.provenance import commit, hardware, versions
from spatial_forcing.study import Arm, policy_config
from spatial_forcing.train import checkpoints, read_metrics

# Enough to fit the probe on 128 channels: twice as many change no AbsRel of the demo by 0.001.
PROBE_TRAIN_EPISODES = 120
PROBE_CAMERA_PICTURES = 4


class ProbeFrames:
    """Frames of some episodes of a data set, with their depth.

    Args:
        root: a LeRobotDataset with ``geometry`` beside it.
        episodes: which episodes; all if None.
    """

    def __init__(self, root: Path, episodes: int | None = None):
        from spatial_forcing.sim.collect import demo_dataset, load_geometry

        dataset = demo_dataset(root)
        count = (
            dataset.meta.total_episodes if episodes is None else min(episodes, dataset.meta.total_episodes)
        )
        self.episodes = list(range(count))
        depth = [load_geometry(root, episode)["depth_TVHW"].float() for episode in self.episodes]
        self.depth_FVHW = torch.cat(depth)
        self.episode_F = torch.cat(
            [torch.full((len(d),), e) for e, d in zip(self.episodes, depth, strict=True)]
        )
        keys = dataset.meta.camera_keys
        # Frame by frame without action chunks, once: tokens need observations only, and LeRobot decodes the
        # pictures of every frame of a chunk.
        self.frames = [dataset[i] for i in range(len(self.episode_F))]
        self.images_FV3HW = torch.stack([torch.stack([f[key] for key in keys]) for f in self.frames])

    def batches(self, loaded: LoadedPolicy) -> Any:
        """Preprocessed batches for a policy, in order."""
        return loaded.batches(self.frames)


def probe_policies(
    teacher: str, arms: Sequence[Arm], train_root: Path, heldout_root: Path, out: Path, device: str
) -> dict[str, Any]:
    """Depth probes on the tapped tokens of every arm and control and of an untrained policy, and on the
    teacher's features.

    Every probe is fitted on demonstrations the policies were trained on and tested on held-out ones. Writes
    ``probe.png``.
    """
    from spatial_forcing.probe import VisualTokens, run_probe, tapped_tokens
    from spatial_forcing.teachers import load_teacher

    train, test = ProbeFrames(train_root, PROBE_TRAIN_EPISODES), ProbeFrames(heldout_root)
    sources: dict[str, tuple[VisualTokens, VisualTokens]] = {}
    for arm in (a for a in arms if a.role != "reference"):
        loaded = LoadedPolicy(last_checkpoint(out / "runs" / arm.name), device)
        sources[arm.name] = (
            tapped_tokens(loaded.policy, train.batches(loaded)),
            tapped_tokens(loaded.policy, test.batches(loaded)),
        )
    random = untrained_policy(replace(arms[0], forcing=None), loaded)
    sources["untrained"] = (
        tapped_tokens(random, train.batches(loaded)),
        tapped_tokens(random, test.batches(loaded)),
    )
    model = load_teacher(teacher, device=device)
    baseline, places = next(iter(sources.items()))
    sources["teacher"] = (
        places[0].carry(model(train.images_FV3HW)),
        places[1].carry(model(test.images_FV3HW)),
    )
    result = run_probe(
        sources,
        train.depth_FVHW,
        test.depth_FVHW,
        train.episode_F,
        # Two data sets: held-out episode 0 is not training episode 0.
        test.episode_F + len(train.episode_F),
        images=(train.images_FV3HW, test.images_FV3HW),
        baseline=baseline,
    )
    picture = result.pictures(test.images_FV3HW, out / "probe.png")
    return result.to_dict(picture.name)


def untrained_policy(arm: Arm, like: LoadedPolicy) -> Any:
    """A policy of the same configuration with random weights."""
    from lerobot.policies.factory import get_policy_class

    config = policy_config(arm)
    config.input_features, config.output_features = like.config.input_features, like.config.output_features
    with torch.random.fork_rng():
        torch.manual_seed(arm.seed)
        return get_policy_class(config.type)(config).eval()


def last_checkpoint(folder: Path) -> Path:
    """The policy an arm ended with."""
    found = checkpoints(folder / "train")
    return found[max(found)]


def gather_results(
    *,
    title: str,
    command: str,
    settings: dict[str, Any],
    teacher: str,
    tasks: Sequence[str],
    arms: Sequence[Arm],
    probe: dict[str, Any] | None,
    timings: dict[str, float],
    out: Path,
) -> dict[str, Any]:
    """Everything the report shows, as plain data; also written to ``out/results.json``."""
    from spatial_forcing.teachers import find_teacher

    record = find_teacher(teacher)
    source = json.loads((out / "features" / record.slug / "manifest.json").read_text())["source"]
    results = {
        "title": title,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "commit": commit(),
        "versions": versions(),
        "hardware": hardware(),
        "settings": settings,
        "teacher": {
            "name": teacher,
            "fingerprint": source["teacher_fingerprint"],
            "licence": source["teacher_licence"],
            "note": record.note,
        },
        "timings": timings,
        "tasks": list(tasks),
        "arms": {arm.name: _arm_results(arm, out) for arm in arms},
        "probe": probe,
        "samples": sample_pictures(Path(arms[0].dataset), out),
        "comparisons": [[name, "forced"] for name in ("baseline", *CONTROLS)],
    }
    write_json(out / "results.json", results)
    return results


def _arm_results(arm: Arm, out: Path) -> dict[str, Any]:
    folder = out / "runs" / arm.name
    evaluations = [json.loads(path.read_text()) for path in sorted((folder / "eval").glob("[0-9]*.json"))]
    weights = last_checkpoint(folder) / "model.safetensors"
    videos = evaluations[-1]["videos"] if evaluations else []
    return {
        "label": arm.label,
        "role": arm.role,
        "seed": arm.seed,
        "steps": arm.steps,
        "parameters": count_parameters(weights),
        "curves": read_metrics(folder / "train"),
        "evaluations": [{k: v for k, v in e.items() if k != "videos"} for e in evaluations],
        "videos": [str((folder / video).relative_to(out)) for video in videos],
    }


def count_parameters(weights: Path) -> int:
    """Parameters in a safetensors file, from its header alone."""
    from safetensors import safe_open

    with safe_open(weights, "pt") as file:
        return sum(int(np.prod(file.get_slice(key).get_shape())) for key in file.keys())  # noqa: SIM118


def sample_pictures(dataset_root: Path, out: Path) -> list[dict[str, str]]:
    """A strip of training frames, all views, and their depth."""
    from spatial_forcing.report.pictures import frame_strip

    frames = ProbeFrames(dataset_root, 1)
    count = min(PROBE_CAMERA_PICTURES, len(frames.episode_F))
    path = out / "samples.png"
    frame_strip(frames.images_FV3HW[:count], frames.depth_FVHW[:count], path)
    return [
        {"path": path.name, "caption": f"{count} consecutive training frames, both views, and their depth"}
    ]
