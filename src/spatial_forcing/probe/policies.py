"""Loading policies for a probe: by folder or Hub name, with their cameras, and an untrained copy.

A policy names cameras as it was trained with; where a data set calls them otherwise, its preprocessor's
rename step says how (LeRobot's ``--rename_map``).
"""

import copy
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.files import read_json
from spatial_forcing.hosts import RECORDS, host_of
from spatial_forcing.probe.depth import ProbeError
from spatial_forcing.probe.records import REFERENCES, UNTRAINED
from spatial_forcing.saved_policy import LoadedPolicy, PolicyError

LAST = ("checkpoints", "last", "pretrained_model")
# What would fetch trained weights when a policy is built anew.
PRETRAINED_OPTIONS = {
    "load_vlm_weights": False,
    "pretrained_backbone_weights": None,
    "pretrained_path": None,
    "base_checkpoint": None,
}


@dataclass(frozen=True)
class ProbedPolicy:
    """A policy loaded for a probe, with its cameras.

    Attributes:
        name: as the user named it.
        loaded: the policy and its processors.
        module: what is tapped: the loaded policy, or its untrained copy.
        cameras: the data set's name of each camera, by the policy's, in the order of the visual tokens.
    """

    name: str
    loaded: LoadedPolicy
    module: nn.Module
    cameras: Mapping[str, str]

    @property
    def sites(self) -> list[str]:
        """All sites: of the vision encoder where the host's record describes it, and of the blocks."""
        return all_sites(self.module)

    @property
    def aligned_site(self) -> str:
        """The site that the host's record recommends for the tap."""
        return host_of(self.module).site_at().name

    def prepared(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Preprocesses a batch of the data set for the policy."""
        return self.loaded.preprocess(dict(batch))


def all_sites(policy: nn.Module) -> list[str]:
    """The names of all sites of a policy, vision encoder first, from the first block on."""
    host = host_of(policy)
    names = []
    for stack, of in (("vision", host.vision), ("blocks", host)):
        if of is not None:
            last = len(of.blocks) if of.final_norm is not None else len(of.blocks) - 1
            names += [f"{stack}.{layer}" for layer in range(1, last + 1)]
    return names


def four_before(policy: nn.Module, site: str) -> list[str]:
    """A site and the three before it, in order; the first one is repeated where there are fewer."""
    stack, layer = host_of(policy).site(site).name.split(".")
    return [f"{stack}.{max(0, int(layer) - back)}" for back in (3, 2, 1, 0)]


def named_policies(
    words: Sequence[str],
    *,
    doing: str = "probe",
    taken: Collection[str] = REFERENCES,
    error: type[SpatialForcingError] = ProbeError,
) -> dict[str, str]:
    """Parses ``["plain=runs/a", ...]`` into folders by name.

    Args:
        words: of the command line.
        doing: what is done with them, for messages.
        taken: names that no policy may have.
        error: what to raise.

    Raises:
        SpatialForcingError: none, a word that is no ``name=folder``, or a name twice.
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, where = word.partition("=")
        if not (name and equals and where):
            raise error(
                f"A policy is given as name=folder or name=owner/name (of the Hub), got {word!r}: "
                "--policies plain=runs/a forced=runs/b base=lerobot/smolvla_base"
            )
        if name in found or name in taken:
            raise error(f"The name {name!r} is taken: give every policy one of its own.")
        found[name] = where
    if not found:
        raise error(f"Name the policies to {doing}: --policies plain=runs/a forced=runs/b")
    return found


def last_checkpoint(path: Path) -> Path | None:
    """The folder itself if it holds a checkpoint, or that of the last checkpoint of a training run."""
    places = (path, path.joinpath(*LAST), path.joinpath("train", *LAST), path.joinpath(*LAST[1:]))
    for folder in (*places, path / LAST[-1]):
        if (folder / "config.json").is_file():
            return folder
    return None


def checkpoint_folder(where: str) -> Path:
    """The folder of a checkpoint: itself, the last one of a training run, or of a Hub repository.

    Raises:
        PolicyError: there is none, or the Hub cannot be reached.
    """
    path = Path(where)
    if (folder := last_checkpoint(path)) is not None:
        return folder
    if path.exists() or where.count("/") != 1 or where.startswith((".", "/")):
        what = (
            "is no checkpoint of a policy, and no training run with one"
            if path.exists()
            else "does not exist"
        )
        near = [str(one.parent) for one in sorted(path.glob("**/config.json"))[-3:]]
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise PolicyError(
            f"{where} {what}. Give a folder with a config.json, a run of lerobot-train, or a name on the Hub "
            f"(owner/name).{hint}"
        )
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(where))
    except Exception as error:  # of many kinds: the Hub's, the network's, offline mode's
        raise PolicyError(
            f"{where} is no folder here, and could not be read from the Hub: {type(error).__name__}: {error}"
        ) from error


def load_policies(
    named: Mapping[str, str], dataset: Any, *, rename: Mapping[str, str] | None = None, device: str = "cpu"
) -> list[ProbedPolicy]:
    """Loads the named policies, checked against a data set.

    Args:
        named: name -> folder or Hub name.
        dataset: the LeRobotDataset that they will see.
        rename: the data set's names of cameras -> a policy's, beside what its preprocessor says.
        device: where they run.

    Raises:
        PolicyError: a checkpoint cannot be loaded.
        ProbeError: a policy of a type without a record, without cameras, of cameras that the data set does
            not have, or of others than the first policy's.
    """
    folders = {name: checkpoint_folder(where) for name, where in named.items()}
    for name, folder in folders.items():
        _check_type(name, folder)
    policies = []
    for name, folder in folders.items():
        loaded = LoadedPolicy(folder, device)
        if loaded.config.type.removeprefix("sf_") == "groot":  # its preprocessor crops, and must say where
            from spatial_forcing.patches import track_groot_crops

            track_groot_crops()
        _fit_statistics(loaded, folder, dataset, rename or {}, device)
        cameras = _cameras(name, loaded, dataset, rename or {})
        policies.append(ProbedPolicy(name, loaded, loaded.policy, cameras))
    first = policies[0]
    for other in policies[1:]:
        if list(other.cameras.values()) != list(first.cameras.values()):
            raise ProbeError(
                "Policies must see the same cameras to be comparable, and these do not: "
                f"{first.name} sees {', '.join(first.cameras.values())}; {other.name} sees "
                f"{', '.join(other.cameras.values())}. Probe them one by one."
            )
    return policies


def trained_on(where: str, dataset: Any, episodes: Sequence[int]) -> list[int]:
    """Which of some episodes of a data set a checkpoint was trained on, as far as it says.

    Args:
        where: its folder or Hub name.
        dataset: a LeRobotDataset.
        episodes: of it.
    """
    said: dict[str, Any] = {}
    with suppress(SpatialForcingError):  # it is only for a note
        said = read_json(checkpoint_folder(where) / "train_config.json").get("dataset") or {}
    root, repo = said.get("root"), said.get("repo_id")
    same = Path(root).resolve() == Path(dataset.root).resolve() if root else repo == dataset.repo_id
    if not same:
        return []
    chosen = said.get("episodes")
    return [episode for episode in episodes if chosen is None or episode in chosen]


def untrained(policy: ProbedPolicy, seed: int = 0) -> ProbedPolicy:
    """Untrained copy of a policy: the same configuration with random weights.

    Raises:
        ProbeError: its class cannot be built without trained weights, or comes with the same ones.
    """
    loaded = policy.loaded
    config = copy.deepcopy(loaded.config)
    for option, value in PRETRAINED_OPTIONS.items():
        if hasattr(config, option):
            setattr(config, option, value)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = type(loaded.policy)(config).to(config.device).eval()
    except Exception as error:
        raise ProbeError(f"{config.type} cannot be built without its trained weights: {error}") from error
    return ProbedPolicy(UNTRAINED, loaded, module, policy.cameras)


def _check_type(name: str, folder: Path) -> None:
    kind = str(read_json(folder / "config.json", error=PolicyError).get("type"))
    if kind.removeprefix("sf_") not in RECORDS:
        raise ProbeError(
            f"{name} is a policy of type {kind!r}, and it is not known where such a policy keeps its visual "
            f"tokens. There are records of: {', '.join(sorted(RECORDS))}. CONTRIBUTING.md says how to add "
            "one (a function and a record)."
        )


def _cameras(name: str, loaded: LoadedPolicy, dataset: Any, rename: Mapping[str, str]) -> dict[str, str]:
    """Maps each of the policy's cameras to the data set's, without those that LeRobot leaves empty."""
    there = [key for key in dataset.meta.camera_keys if key not in dataset.meta.depth_keys]
    known_as = {ours: theirs for theirs, ours in {**_renamed(loaded), **rename}.items()}
    wanted = [key for key in loaded.config.image_features if "empty_camera" not in key]
    if not wanted:
        raise ProbeError(f"{name} has no cameras: there are no visual tokens to probe.")
    found = {key: known_as.get(key, key) for key in wanted}
    missing = [key for key, theirs in found.items() if theirs not in there]
    if len(missing) == len(wanted) or (missing and loaded.config.type == "act"):
        raise ProbeError(
            f"{name} looks at {', '.join(wanted)}, and the data set has {', '.join(there) or 'no cameras'}: "
            f"it lacks {', '.join(missing)}. Say which is which: --rename {there[0] if there else '<camera>'}"
            f"={missing[0]}"
        )
    return {key: theirs for key, theirs in found.items() if key not in missing}


def _renamed(loaded: LoadedPolicy) -> dict[str, str]:
    """The rename step of a preprocessor: the data set's names -> the policy's."""
    maps = [getattr(step, "rename_map", None) or {} for step in getattr(loaded.preprocess, "steps", ())]
    return {key: value for one in maps for key, value in one.items()}


def _fit_statistics(
    loaded: LoadedPolicy, folder: Path, dataset: Any, rename: Mapping[str, str], device: str
) -> None:
    """Rebuilds the preprocessor with the data set's statistics where its own do not fit, or with renaming.

    A base model has statistics of other robots, or none; LeRobot replaces them in the same way when it
    starts to fine-tune.
    """
    stats = dataset.meta.stats or {}
    own = _statistics(loaded)
    shapes = {key: tuple(torch.as_tensor(of["mean"]).shape) for key, of in stats.items() if "mean" in of}
    state = "observation.state"
    mine = own.get(state, {}).get("mean")
    fits = state not in shapes or (mine is not None and tuple(torch.as_tensor(mine).shape) == shapes[state])
    if fits and not rename:
        return
    from lerobot.policies import make_pre_post_processors

    config = loaded.config
    overrides: dict[str, Any] = {"device_processor": {"device": device}}
    if not fits:
        overrides["normalizer_processor"] = {
            "stats": stats,
            "features": {**(config.input_features or {}), **(config.output_features or {})},
            "norm_map": config.normalization_mapping,
        }
    if rename:
        overrides["rename_observations_processor"] = {"rename_map": {**_renamed(loaded), **rename}}
    try:
        loaded.preprocess, loaded.postprocess = make_pre_post_processors(
            config, pretrained_path=str(folder), preprocessor_overrides=overrides
        )
    except Exception as error:  # LeRobot's, of many kinds
        raise PolicyError(f"The preprocessor of {folder} does not fit the data set: {error}") from error


def _statistics(loaded: LoadedPolicy) -> dict[str, Any]:
    for step in getattr(loaded.preprocess, "steps", ()):
        stats = getattr(step, "stats", None)
        if isinstance(stats, dict) and stats:
            return stats
    return {}


def check_sites(policy: ProbedPolicy, wanted: Sequence[str]) -> list[str]:
    """Validates site names of a policy; ``["all"]`` means all.

    Raises:
        TapError: there is no such site; says which there are.
        SpatialForcingError: none was named.
    """
    if not wanted:
        raise SpatialForcingError("Name sites to probe, or all.")
    if list(wanted) == ["all"]:
        return policy.sites
    host = host_of(policy.module)
    return list(dict.fromkeys(host.site(name).name for name in wanted))
