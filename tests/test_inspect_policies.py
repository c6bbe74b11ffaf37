"""Checkpoints of LeRobot policies are told apart, and compared with the model, without reading weights."""

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_checkpoints import assert_says, change_tensors, hollow, save_processors, save_small
from small_openvla import change_json
from small_plugin import SMALL
from small_policies import CAMERAS, HOSTS, features_of, small_parts

from spatial_forcing.inspection.blank import blank_policy
from spatial_forcing.inspection.look import inspect_path
from spatial_forcing.inspection.record import Inspection

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def smolvla(folder, tmp_path_factory) -> Path:
    return save_small("smolvla", folder, tmp_path_factory.mktemp("smolvla") / "checkpoint")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    from spatial_forcing.hosts.tiny_policy import TinyConfig, TinyPolicy

    path = tmp_path_factory.mktemp("tiny") / "checkpoint"
    config = TinyConfig(**SMALL)
    config.input_features, config.output_features = features_of(dict.fromkeys(CAMERAS, (28, 28)))
    TinyPolicy(config).save_pretrained(path)
    save_processors(config, path)
    return path


@pytest.fixture
def copy(tiny, tmp_path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def inspected(kind: str, folder: Path) -> Inspection:
    with small_parts(kind):
        return inspect_path(folder)


# ---- every policy that has a record ------------------------------------------------------------------------


def spoil(state: dict[str, torch.Tensor]) -> tuple[str, str, str]:
    """Removes a tensor, renames one and reshapes one; says which."""
    plain = [name for name in sorted(state) if state[name].ndim == 2 and "embed" not in name]
    removed, renamed, reshaped = plain[0], plain[1], plain[-1]
    del state[removed]
    state[f"{renamed}_"] = state.pop(renamed)
    state[reshaped] = state[reshaped][:-1]
    return removed, renamed, reshaped


@pytest.mark.parametrize("kind", HOSTS)
def test_a_saved_policy_loads_and_a_spoilt_one_does_not(folder, tmp_path, kind):
    path = save_small(kind, folder, tmp_path / kind)
    found = inspected(kind, path)
    assert found.loads, found.text()
    assert (found.kind, found.what) == ("policy", f"LeRobot policy {kind}")
    assert found.facts["Spatial Forcing"].startswith(f"can be forced as sf_{kind}, 2 views of ")
    assert found.facts["recommended site"] == "blocks.3 of 4 blocks"
    assert found.facts["actions"] == "4 at once, of 4 numbers"

    told: list[str] = []
    change_tensors(path / WEIGHTS, lambda state: told.extend(spoil(state)))
    removed, renamed, reshaped = told
    found = inspected(kind, path)
    assert not found.loads
    assert set(found.missing) == {removed, renamed}
    assert [name.removesuffix("_") for name in found.foreign] == [renamed]
    assert found.misshaped[0].startswith(f"{reshaped} (expected ")


def test_what_is_said_of_the_built_in_vla(tiny):
    found = inspect_path(tiny)
    assert found.loads, found.text()
    assert found.facts["cameras"] == ["left (28x28)", "right (28x28)"]
    assert found.facts["normalised"] == ["observation.state (MEAN_STD)", "action (MEAN_STD)"]
    assert found.facts["projector"] == "none"
    assert found.plain()["loads"] is True
    assert json.loads(json.dumps(found.plain())) == found.plain()


def test_tied_weights_may_be_saved_under_any_of_their_names(folder, tmp_path):
    path = save_small("eo1", folder, tmp_path / "eo1")
    names = "model.vlm_backbone.lm_head.weight", "model.vlm_backbone.model.language_model.embed_tokens.weight"

    def rename(state):
        old = next(name for name in names if name in state)
        state[next(name for name in names if name != old)] = state.pop(old)

    change_tensors(path / WEIGHTS, rename)
    assert inspected("eo1", path).loads
    change_tensors(path / WEIGHTS, lambda state: [state.pop(name, None) for name in names])
    assert set(inspected("eo1", path).missing) == set(names)


def test_checkpoints_of_openpis_layout_are_taken_as_lerobot_takes_them(folder, tmp_path):
    """LeRobot's pi0 gives names the prefix that openpi's lack."""
    path = save_small("pi0", folder, tmp_path / "pi0")

    def strip(state):
        for name in list(state):
            state[name.removeprefix("model.")] = state.pop(name)

    change_tensors(path / WEIGHTS, strip)
    assert inspected("pi0", path).loads


def test_a_policy_at_its_own_size_is_not_allocated(tmp_path):
    from lerobot.policies.pi0.configuration_pi0 import PI0Config

    config = PI0Config(device="cpu")
    config.input_features, config.output_features = features_of(dict.fromkeys(CAMERAS, (256, 256)))
    config.save_pretrained(tmp_path)
    with small_parts("pi0"):  # its tokenizer is on the Hub
        save_processors(config, tmp_path)
    policy = blank_policy(config, tmp_path)
    hollow(tmp_path / WEIGHTS, {n: tuple(t.shape) for n, t in policy.state_dict().items()}, "F32", 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = inspect_path(tmp_path)
    assert found.loads, found.text()
    assert found.facts["parameters"] == 4_028_019_472
    assert found.facts["recommended site"] == "blocks.12 of 18 blocks"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB; 16 GB are there


# ---- bad input ---------------------------------------------------------------------------------------------


def state_of(path: Path) -> Path:
    return next(path.glob("policy_preprocessor_step_*"))


def widen(state: dict[str, torch.Tensor]) -> None:
    for name in list(state):
        state[name] = torch.zeros(7)


def in_shards(path: Path) -> None:
    (path / WEIGHTS).rename(path / "model-00001-of-00001.safetensors")
    state = {"metadata": {}, "weight_map": {}}
    change = path / f"{WEIGHTS}.index.json"
    from safetensors import safe_open

    with safe_open(path / "model-00001-of-00001.safetensors", "pt") as file:
        state["weight_map"] = dict.fromkeys(file.keys(), "model-00001-of-00001.safetensors")
    change.write_text(json.dumps(state))


def pickled(path: Path) -> None:
    (path / WEIGHTS).unlink()
    torch.save({"a": print}, path / "model.pt")


CONFIG = "config.json"
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "unknown type": (
        lambda p: change_json(p / CONFIG, lambda c: c.update(type="smolvlo")),
        "Unknown type of policy in LeRobot .* 'smolvlo'. Did you mean 'smolvla'",
    ),
    "another type": (
        lambda p: change_json(p / CONFIG, lambda c: c.update(type="act")),
        "config.json has decay_lr, .*, which ACTConfig of LeRobot .* does not know",
    ),
    "newer LeRobot": (
        lambda p: change_json(p / CONFIG, lambda c: c.update(new_option=3)),
        "config.json has new_option, which TinyConfig .* newer LeRobot",
    ),
    "value of another kind": (
        lambda p: change_json(p / CONFIG, lambda c: c.update(chunk_size="many")),
        "cannot read config.json: .*chunk_size",
    ),
    "impossible value": (
        lambda p: change_json(p / CONFIG, lambda c: c.update(n_action_steps=999)),
        "cannot read config.json: .*999",
    ),
    "no action": (
        lambda p: change_json(p / CONFIG, lambda c: c.update(output_features={})),
        "names no action",
    ),
    "impossible size": (
        lambda p: change_json(p / CONFIG, lambda c: c.update(heads=5)),
        "cannot build the policy of config.json here: .*5",
    ),
    "damaged config": (lambda p: (p / CONFIG).write_text("{"), "config.json is damaged"),
    "no weights": (lambda p: (p / WEIGHTS).unlink(), "No weights: expected .*model.safetensors"),
    "cut weights": (
        lambda p: (p / WEIGHTS).write_bytes((p / WEIGHTS).read_bytes()[:-9]),
        "model.safetensors is cut off or damaged: expected .* bytes",
    ),
    "in shards": (in_shards, "LeRobot reads model.safetensors alone"),
    "a pickle": (pickled, "model.pt is not a PyTorch file of plain tensors"),
    "no preprocessor": (lambda p: (p / "policy_preprocessor.json").unlink(), "preprocessor is missing"),
    "damaged postprocessor": (
        lambda p: (p / "policy_postprocessor.json").write_text("[]"),
        "policy_postprocessor.json is damaged",
    ),
    "unknown step": (
        lambda p: change_json(
            p / "policy_preprocessor.json", lambda c: c["steps"].append({"registry_name": "new_step"})
        ),
        "step that this LeRobot does not know; .*'new_step'",
    ),
    "no step's record": (
        lambda p: change_json(
            p / "policy_preprocessor.json", lambda c: c["steps"][-1]["config"].update(features={"a": 3})
        ),
        "policy_preprocessor.json is damaged: normalizer_processor is no step's record",
    ),
    "no statistics' file": (lambda p: state_of(p).unlink(), "_step_3.safetensors is missing"),
    "cut statistics": (
        lambda p: state_of(p).write_bytes(state_of(p).read_bytes()[:-4]),
        "_step_3.safetensors is cut off",
    ),
    "statistics of others": (lambda p: change_tensors(state_of(p), widen), "of 7 numbers, it has 4"),
    "half the statistics": (
        lambda p: change_tensors(state_of(p), lambda s: s.pop("action.std")),
        "MEAN_STD of action needs the statistics action.std: missing",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_checkpoints(copy, case):
    damage, says = BAD[case]
    damage(copy)
    found = inspect_path(copy)
    assert not found.loads
    assert_says(found, says)
    assert "loads              no" in found.text()


def test_a_policy_without_statistics_is_for_training_only(copy):
    change_tensors(state_of(copy), lambda state: [state.pop(n) for n in list(state) if "action" in n])
    found = inspect_path(copy)
    assert found.loads
    assert "No statistics of action" in "".join(found.notes)


def test_a_base_model_that_is_not_here(smolvla, tmp_path):
    path = Path(shutil.copytree(smolvla, tmp_path / "copy"))
    change_json(path / CONFIG, lambda c: c.update(vlm_model_name="/no/such"))
    assert_says(inspect_path(path), "cannot build the policy of config.json here: .*/no/such")


def test_a_policy_without_a_record(tmp_path):
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig

    config = DiffusionConfig(down_dims=(8, 16), spatial_softmax_num_keypoints=2, device="cpu")
    config.input_features, config.output_features = features_of({"observation.images.left": (32, 32)})
    config.save_pretrained(tmp_path)
    found = inspect_path(tmp_path)
    assert found.facts["Spatial Forcing"].startswith("no: no record of diffusion; of act, ")
    assert not found.loads
    assert_says(found, "No weights")


def test_keys_are_of_openvla(copy):
    found = inspect_path(copy, key="libero")
    assert found.loads
    assert found.unmet[0].startswith("--key is for OpenVLA")
