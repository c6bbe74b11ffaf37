"""Gathers what a comparison left on disk: tokens for the depth probe, curves, evaluations, images.

Shapes: F frames, V views, H W pixels or rows and columns, C channels.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from spatial_forcing.control import CONTROLS
from spatial_forcing.demo_settings import DemoSettings, features_folder
from spatial_forcing.evaluate import LoadedPolicy
from spatial_forcing.provenance import made_with
from spatial_forcing.results import ArmHead, Probe, Results, RunResults, Sample, TeacherUsed, curve_rows
from spatial_forcing.study import Arm, evaluations_of, policy_config
from spatial_forcing.train import checkpoints, read_metrics

if TYPE_CHECKING:
    from spatial_forcing.probe import Frames

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
        # images of every frame of a chunk.
        self.frames = [dataset[i] for i in range(len(self.episode_F))]
        self.images_FV3HW = torch.stack([torch.stack([f[key] for key in keys]) for f in self.frames])

    def known(self, episodes_before: int = 0) -> "Frames":
        """Depth, images and the episode of each frame, counted on from ``episodes_before``."""
        from spatial_forcing.probe import Frames

        return Frames(self.depth_FVHW, self.episode_F + episodes_before, self.images_FV3HW)

    def batches(self, loaded: LoadedPolicy) -> Any:
        """Preprocessed batches for a policy, in order."""
        return loaded.batches(self.frames)


def probe_policies(
    teacher: str, arms: Sequence[Arm], train_root: Path, heldout_root: Path, out: Path, device: str
) -> Probe:
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
    baseline, tokens = next(iter(sources.items()))
    sources["teacher"] = (
        tokens[0].carry(model(train.images_FV3HW)),
        tokens[1].carry(model(test.images_FV3HW)),
    )
    # Two data sets: held-out episode 0 is not training episode 0.
    result = run_probe(sources, train.known(), test.known(len(train.episode_F)), baseline=baseline)
    image = result.draw(test.images_FV3HW, out / "probe.png")
    return result.record(image.name)


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
    settings: DemoSettings,
    arms: Sequence[Arm],
    probe: Probe | None,
    timings: dict[str, float],
    out: Path,
    command: str,
) -> Results:
    """Everything the report of a demo shows; also written to ``out/results.json``."""
    spec, _ = settings.demonstrations()
    results = Results(
        title="Spatial Forcing demo",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        **made_with(command),
        settings=asdict(settings),
        teacher=teacher_used(settings.teacher, features_folder(settings, out)),
        timings=timings,
        tasks=list(settings.tasks),
        arms={
            arm.name: ArmHead(label=arm.label, role=arm.role, differs=flags_that_differ(arms[0], arm))
            for arm in arms
        },
        runs=[run_results(arm, out, spec.episodes * len(spec.tasks)) for arm in arms],
        probe=probe,
        samples=sample_images(Path(arms[0].dataset), out),
        comparisons=[[name, "forced"] for name in ("baseline", *CONTROLS)],
    )
    results.save(out / "results.json")
    return results


def teacher_used(name: str, features: Path) -> TeacherUsed:
    """The teacher whose features lie in a folder."""
    from spatial_forcing.teachers import find_teacher

    source = json.loads((features / "manifest.json").read_text())["source"]
    return TeacherUsed(
        name=name,
        fingerprint=source["teacher_fingerprint"],
        licence=source["teacher_licence"],
        note=find_teacher(name).note,
    )


def flags_that_differ(plain: Arm, arm: Arm) -> list[str]:
    """The flags of ``lerobot-train`` in which an arm differs from the plain one."""

    def flags(one: Arm) -> dict[str, Any]:
        forcing = {f"forcing.{name}": value for name, value in (one.forcing or {}).items()}
        return {"type": "tiny" if one.forcing is None else "sf_tiny", **one.policy, **forcing}

    before = flags(plain)
    return [
        f"--policy.{name}={json.dumps(value) if isinstance(value, bool) else value}"
        for name, value in flags(arm).items()
        if value != before.get(name)
    ]


def run_results(arm: Arm, out: Path, train_episodes: int) -> RunResults:
    """What a run of the demo has left in its folder so far."""
    folder = out / "runs" / arm.name
    evaluations = evaluations_of(folder)
    videos = evaluations[-1].videos if evaluations else []
    return RunResults(
        arm=arm.name,
        seed=arm.seed,
        train_episodes=train_episodes,
        steps=arm.steps,
        parameters=count_parameters(last_checkpoint(folder) / "model.safetensors"),
        curves=curve_rows(read_metrics(folder / "train")),
        evaluations=evaluations,
        videos=[str((folder / video).relative_to(out)) for video in videos],
    )


def count_parameters(weights: Path) -> int:
    """Parameters in a safetensors file, from its header alone."""
    from safetensors import safe_open

    with safe_open(weights, "pt") as file:
        return sum(int(np.prod(file.get_slice(key).get_shape())) for key in file.keys())  # noqa: SIM118


def sample_images(dataset_root: Path, out: Path) -> list[Sample]:
    """A strip of training frames, all views, and their depth."""
    from spatial_forcing.report.images import frame_strip

    frames = ProbeFrames(dataset_root, 1)
    count = min(PROBE_CAMERA_PICTURES, len(frames.episode_F))
    path = out / "samples.png"
    frame_strip(frames.images_FV3HW[:count], frames.depth_FVHW[:count], path)
    caption = f"{count} consecutive training frames, both views, and their depth"
    return [Sample(path=path.name, caption=caption)]
