"""The LeRobot plug-in: sf_tiny trains with LeRobot's trainer and leaves a plain checkpoint."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from safetensors.torch import load_file
from small_dataset import CAMERAS, make_dataset

from lerobot_policy_spatial_forcing.configuration_sf import CLASSES
from lerobot_policy_spatial_forcing.forcing import FeatureSource, ForcingConfig
from lerobot_policy_spatial_forcing.forcing_config import RENAMED
from lerobot_policy_spatial_forcing.modeling_sf import forced_policy_class
from spatial_forcing import patches
from spatial_forcing.cache.codec import CodecOptions
from spatial_forcing.cache.extract import Extraction, extract, extract_layers
from spatial_forcing.cache.store import CacheError
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.evaluate import LoadedPolicy
from spatial_forcing.hosts.tiny_policy import TinyConfig, TinyPolicy
from spatial_forcing.tap import TapError
from spatial_forcing.teachers import load_teacher
from spatial_forcing.train import checkpoints, read_metrics, train_config, train_or_continue
from spatial_forcing.train_command import TrainCommand

SfTinyConfig = CLASSES["tiny"]
SfTinyPolicy = forced_policy_class("tiny")

SMALL = {
    "image_size": 28,
    "width": 32,
    "depth": 4,
    "heads": 2,
    "device": "cpu",
    "warmup_steps": 1,
    "decay_steps": 4,
}
TEACHER = "untrained-tiny"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "small")


@pytest.fixture(scope="module")
def cache(dataset, tmp_path_factory) -> Path:
    return extract(dataset, load_teacher(TEACHER), TEACHER, tmp_path_factory.mktemp("cache") / "features")


def stored_in(components: int) -> Extraction:
    return Extraction(codec=CodecOptions("pca-int8", components=components))


def forced_config(**forcing) -> SfTinyConfig:
    return SfTinyConfig(
        **SMALL, forcing=ForcingConfig(**{"teacher": TEACHER, "diagnostics_every": 2} | forcing)
    )


def train(config, dataset: Path, out: Path, steps: int = 4, save_every: int = 2) -> Path:
    run = train_config(
        config, dataset, out, steps=steps, batch_size=4, seed=3, save_every=save_every, log_every=1
    )
    return train_or_continue(run)


@pytest.fixture(scope="module")
def forced_run(dataset, cache, tmp_path_factory) -> Path:
    return train(forced_config(cache=str(cache)), dataset, tmp_path_factory.mktemp("forced") / "run")


@pytest.fixture(scope="module")
def plain_run(dataset, tmp_path_factory) -> Path:
    return train(TinyConfig(**SMALL), dataset, tmp_path_factory.mktemp("plain") / "run")


def a_batch(loaded: LoadedPolicy, dataset: Path) -> dict:
    return next(iter(loaded.batches(loaded.dataset(dataset), batch_size=5)))


def interrupted_after(run: Path, step: int) -> None:
    """As if a run of four steps had been interrupted after ``step``: drops what came after."""
    newest = run / "checkpoints" / "last"
    shutil.rmtree(checkpoints(run)[4].parent)
    newest.unlink()
    newest.symlink_to(checkpoints(run)[step].parent.name)


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(checkpoints(run)[step] / "model.safetensors")


def test_lerobot_finds_the_plug_in():
    from lerobot.configs import PreTrainedConfig
    from lerobot.envs.configs import EnvConfig
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    assert {"tiny", "sf_tiny"} <= set(PreTrainedConfig.get_known_choices())
    assert "sf_metaworld" in EnvConfig.get_known_choices()


def test_checkpoint_is_the_hosts_own(forced_run, plain_run):
    forced, plain = checkpoints(forced_run)[4], checkpoints(plain_run)[4]
    assert json.loads((forced / "config.json").read_text())["type"] == "tiny"
    assert set(json.loads((forced / "config.json").read_text())) == set(
        json.loads((plain / "config.json").read_text())
    )
    a, b = weights(forced_run, 4), weights(plain_run, 4)
    assert {k: v.shape for k, v in a.items()} == {k: v.shape for k, v in b.items()}
    assert any((a[k] != b[k]).any() for k in a), "forcing changed nothing"
    assert type(LoadedPolicy(forced).policy) is TinyPolicy


def test_exported_policy_is_bit_equal_to_the_training_object(dataset, cache, tmp_path):
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata
    from lerobot.policies import make_policy

    meta = LeRobotDatasetMetadata("local/small", root=dataset)
    training = make_policy(forced_config(cache=str(cache)), ds_meta=meta)
    assert isinstance(training, SfTinyPolicy)
    training.save_pretrained(tmp_path)
    exported = TinyPolicy.from_pretrained(tmp_path)
    batch = {key: torch.rand(3, 3, 28, 28) for key in CAMERAS}
    batch |= {"observation.state": torch.randn(3, 4), "task": ["move the hand"] * 3}
    torch.testing.assert_close(
        exported.predict_action_chunk(batch), training.predict_action_chunk(batch), rtol=0, atol=0
    )


def test_weight_zero_is_the_plain_policy(dataset, cache, plain_run, tmp_path):
    baseline = train(forced_config(cache=str(cache), loss_weight=0.0), dataset, tmp_path / "run")
    # Same weights, same batches, so the same loss at every step. Only the gradient norm that clips both is
    # summed over more (zero) terms: rounding.
    for a, b in zip(read_metrics(baseline), read_metrics(plain_run), strict=True):
        assert a["action_loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


def test_resume_equals_straight_through(dataset, cache, forced_run, tmp_path):
    config = forced_config(cache=str(cache))
    interrupted = train(config, dataset, tmp_path / "run")
    interrupted_after(interrupted, 2)
    train(forced_config(cache=str(cache)), dataset, tmp_path / "run")
    for key, value in weights(forced_run, 4).items():
        assert torch.equal(weights(interrupted, 4)[key], value), key
    side = "spatial_forcing/projector.safetensors"
    a, b = (load_file(checkpoints(run)[4] / side) for run in (interrupted, forced_run))
    assert all(torch.equal(a[k], b[k]) for k in b)
    rows = [[r["step"] for r in read_metrics(run)] for run in (interrupted, forced_run)]
    assert rows[0] == rows[1] == [1, 2, 3, 4]


def test_metrics_are_logged(forced_run):
    rows = read_metrics(forced_run)
    assert {"action_loss", "align_loss", "cosine", "valid_fraction", "grad_norm", "update_s"} <= set(rows[0])
    ratios = [row["gradient_ratio"] for row in rows]
    assert ratios[0] == ratios[1] != ratios[2], "measured every second step, and repeated in between"
    assert rows[0]["cosine"] == pytest.approx(1 - rows[0]["align_loss"], abs=1e-5)
    assert rows[0]["loss"] == pytest.approx(rows[0]["action_loss"] + 0.5 * rows[0]["align_loss"], abs=1e-5)


def test_cached_and_online_give_the_same_loss(dataset, cache, forced_run, tmp_path):
    online = train(forced_config(), dataset, tmp_path / "run")
    for a, b in zip(read_metrics(online), read_metrics(forced_run), strict=True):
        # The cache keeps half precision: three digits.
        assert a["align_loss"] == pytest.approx(b["align_loss"], abs=2e-4)
        assert a["action_loss"] == pytest.approx(b["action_loss"], abs=2e-4)


@pytest.mark.parametrize("control", ["shuffled", "place"])
def test_controls_train_online_and_from_a_cache_alike(dataset, cache, forced_run, tmp_path, control):
    found = {}
    for name, source in (("online", {}), ("cached", {"cache": str(cache)})):
        run = train(forced_config(control=control, **source), dataset, tmp_path / name)
        found[name] = [row["align_loss"] for row in read_metrics(run)]
    assert found["online"] == pytest.approx(found["cached"], rel=2e-2)
    forced = [row["align_loss"] for row in read_metrics(forced_run)]
    # At the first step, from the same weights; later losses may meet by chance.
    assert abs(found["cached"][0] - forced[0]) > 1e-3, "same as forcing"


def test_evaluation_and_action_selection_know_nothing_of_forcing(dataset, forced_run):
    loaded = LoadedPolicy(checkpoints(forced_run)[4])
    config = forced_config()
    config.input_features, config.output_features = (
        loaded.config.input_features,
        loaded.config.output_features,
    )
    forced = SfTinyPolicy.from_pretrained(checkpoints(forced_run)[4], config=config)
    batch = a_batch(loaded, dataset)
    with torch.no_grad():
        torch.testing.assert_close(forced.forward(batch)[0], loaded.policy.forward(batch)[0], rtol=0, atol=0)
    assert "align_loss" not in forced.forward(batch)[1]


def test_frozen_host_stops_before_the_first_step(dataset, cache):
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata
    from lerobot.policies import make_policy

    meta = LeRobotDatasetMetadata("local/small", root=dataset)
    policy = make_policy(forced_config(cache=str(cache)), ds_meta=meta)
    policy.model.requires_grad_(False)
    policy.model.actions.requires_grad_(True)
    batch = {key: torch.rand(2, 3, 28, 28) for key in CAMERAS}
    batch |= {"observation.state": torch.randn(2, 4), "task": ["go"] * 2, "index": torch.tensor([0, 1])}
    batch |= {"action": torch.randn(2, 8, 4), "action_is_pad": torch.zeros(2, 8, dtype=torch.bool)}
    with pytest.raises(TapError, match="Nothing that shapes the visual tokens of TinyVLA"):
        policy.train().forward(batch)


@pytest.mark.parametrize(
    ("forcing", "message"),
    [
        ({"teacher": "pixels"}, "is of teacher"),
        ({"loss_weight": -1.0}, "0 or more"),
        ({"loss_weight": float("nan")}, "finite number, 0 or more, got nan"),
        ({"position_embedding": 5.0}, r"0 \(none\) to 1.*got 5.0"),
        ({"diagnostics_every": -3}, r"diagnostics_every.*0 or more.*got -3"),
        ({"site": "blocks.5"}, "has no site 'blocks.5'"),
        ({"norm": "instance"}, "'layer' or 'batch'"),
    ],
)
def test_bad_options_are_refused(dataset, cache, tmp_path, forcing, message):
    with pytest.raises(SpatialForcingError, match=message):
        train(forced_config(cache=str(cache), **forcing), dataset, tmp_path / "run")


def test_teacher_options_reach_the_teacher(cache):
    def source(**options) -> FeatureSource:
        cameras = {name: name for name in CAMERAS}
        return FeatureSource(ForcingConfig(teacher=TEACHER, **options), cameras, "cpu")

    online = source(layer=1, resolution=28, dtype="float16").teacher
    same = load_teacher(TEACHER, layer=1, resolution=28, dtype=torch.float16)
    assert (online.fingerprint, online.dtype) == (same.fingerprint, torch.float16)
    stored = source(cache=str(cache), layer=-1, resolution=112).teacher
    assert stored.fingerprint == source().teacher.fingerprint
    for wrong, message in (
        ({"cache": str(cache), "layer": 1}, "was written with layer 3, and layer 1 is asked for"),
        ({"layer": 4}, "layers 0 to 3"),
        ({"resolution": 30}, "multiple of the teacher's patch"),
        ({"dtype": "bf16"}, "Unknown dtype of a teacher 'bf16'"),
    ):
        with pytest.raises(SpatialForcingError, match=message):
            source(**wrong)


def test_cache_of_another_data_set_is_refused(cache, tmp_path):
    other = make_dataset(tmp_path / "other", seed=1)
    with pytest.raises(CacheError, match="of data set"):
        train(forced_config(cache=str(cache)), other, tmp_path / "run")


def test_standardising_needs_statistics(dataset, tmp_path):
    with pytest.raises(SpatialForcingError, match=r"forcing\.cache"):
        train(forced_config(standardize=True), dataset, tmp_path / "run")


def test_a_folder_of_something_else_is_left_alone(dataset, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(SpatialForcingError, match="not a training run"):
        train(TinyConfig(**SMALL), dataset, tmp_path / "run")
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_blind_and_state_policies_differ_in_what_they_see(dataset):
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata
    from lerobot.policies import make_policy

    meta = LeRobotDatasetMetadata("local/small", root=dataset)
    blind = make_policy(TinyConfig(**SMALL, use_images=False), ds_meta=meta).eval()
    batch = {key: torch.rand(2, 3, 28, 28) for key in CAMERAS}
    batch |= {"observation.state": torch.randn(2, 4), "task": ["go"] * 2}
    other = batch | {key: torch.rand(2, 3, 28, 28) for key in CAMERAS}
    assert torch.equal(blind.predict_action_chunk(batch), blind.predict_action_chunk(other))
    seeing = make_policy(TinyConfig(**SMALL), ds_meta=meta).eval()
    assert not torch.equal(seeing.predict_action_chunk(batch), seeing.predict_action_chunk(other))
    with pytest.raises(SpatialForcingError, match="environment_state"):
        make_policy(TinyConfig(**SMALL, use_environment_state=True), ds_meta=meta)


def test_the_target_may_be_the_pca_coefficients_of_a_cache(dataset, tmp_path):
    small = extract(dataset, load_teacher(TEACHER), TEACHER, tmp_path / "features", stored_in(8))
    out = train(forced_config(cache=str(small), pca_targets=True), dataset, tmp_path / "run", steps=2)
    projector = load_file(checkpoints(out)[2] / "spatial_forcing" / "projector.safetensors")
    assert projector["projector.fc2.weight"].shape == (8, load_teacher(TEACHER).width)
    assert 0 < read_metrics(out)[-1]["align_loss"] < 2
    # The same teacher, and directions of another cache: numbers that mean something else.
    other = extract(dataset, load_teacher(TEACHER), TEACHER, tmp_path / "other", stored_in(12))
    for changed in ({"cache": str(small)}, {"cache": str(other), "pca_targets": True}):
        config = forced_config(**changed)
        config.pretrained_path = checkpoints(out)[2]
        with pytest.raises(SpatialForcingError, match=r"features: .* there.*new_projector=true"):
            train(config, dataset, tmp_path / "stops", steps=2)
        shutil.rmtree(tmp_path / "stops", ignore_errors=True)
    config = forced_config(cache=str(other), pca_targets=True, new_projector=True)
    config.pretrained_path = checkpoints(out)[2]
    assert read_metrics(train(config, dataset, tmp_path / "goes on", steps=2))


# ---- what a projector was trained for ---------------------------------------------------------------------


def prepared(config, dataset: Path):
    """The policy as LeRobot has it when the optimizer is made."""
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata
    from lerobot.policies import make_policy

    policy = make_policy(config, ds_meta=LeRobotDatasetMetadata("local/small", root=dataset))
    policy.get_optim_params()
    return policy


def continues(policy, at: Path) -> bool:
    saved = load_file(at / "spatial_forcing" / "projector.safetensors")
    return all(torch.equal(policy.forcing.state_dict()[name], value) for name, value in saved.items())


OTHERS = [
    ({"site": "blocks.1"}, "site: blocks.3 there, blocks.1 here"),
    ({"site": "blocks.1"}, "site: blocks.3 there, blocks.1 here"),
    ({"norm": "batch"}, "norm: layer there, batch here"),
    ({"position_embedding": 0.3}, "position_embedding: 0.1 there, 0.3 here"),
    ({"standardize": True}, "standardize: False there, True here"),
    ({"published": True}, "published: False there, True here"),
    ({"control": "place"}, "control: None there, place here"),
    ({"loss": "relations"}, "loss: cosine there, relations here"),
]
# What is beside a projector since there can be several of them.
NEW_IN_RECORDS = ("name", "loss", "alignments", "step")


@pytest.mark.parametrize("version", ["now", "a depth", "no site"])
@pytest.mark.parametrize(("forcing", "says"), OTHERS)
def test_a_projector_for_something_else_does_not_continue(
    forced_run, dataset, cache, tmp_path, version, forcing, says
):
    at = tmp_path / "checkpoint"
    shutil.copytree(checkpoints(forced_run)[4], at)
    described = at / "spatial_forcing" / "forcing.json"
    said = json.loads(described.read_text())
    assert said["site"] == {"host": "TinyVLA", "width": 32, "name": "blocks.3"}
    if version != "now":
        said = {k: v for k, v in said.items() if k not in NEW_IN_RECORDS}
        said["site"] = {"host": "TinyVLA", "width": 32, "depth": 3}
        said |= {old: said.pop(new) for old, new in RENAMED.items() if new in said and old != "depth"}
    if version == "no site":
        said = {k: v for k, v in said.items() if k not in ("site", "control")}
    described.write_text(json.dumps(said))
    for same in ({}, {"site": "blocks.3"}, {"site": "blocks.-2"}, {"loss_weight": 0.1}):
        assert continues(prepared(on_top_of(at, cache, **same), dataset), at)
    with pytest.raises(SpatialForcingError, match=rf"{says}\).*give what is there.*new_projector=true"):
        prepared(on_top_of(at, cache, **forcing), dataset)
    if "norm" not in forcing:
        anew = prepared(on_top_of(at, cache, **forcing, new_projector=True), dataset)
        assert not continues(anew, at)


def on_top_of(at: Path, cache: Path, **forcing):
    config = forced_config(cache=str(cache), **forcing)
    config.pretrained_path = at
    return config


def test_a_cache_of_several_layers_is_trained_toward_the_one_that_is_named(dataset, tmp_path):
    teacher = load_teacher(TEACHER)
    several = str(extract_layers(dataset, teacher, TEACHER, tmp_path / "features", [1, -1]))
    with pytest.raises(CacheError, match=r"the layers 1, 3 .*Say which: --policy\.forcing\.layer"):
        train(forced_config(cache=several), dataset, tmp_path / "stops")
    out = train(forced_config(cache=several, layer=1), dataset, tmp_path / "run", steps=2)
    said = json.loads((checkpoints(out)[2] / "spatial_forcing" / "forcing.json").read_text())
    assert said["teacher_fingerprint"] == teacher.fingerprint_of(1) != teacher.fingerprint


def test_coefficients_are_refused_where_there_are_none(dataset, cache, tmp_path):
    with pytest.raises(CacheError, match="and no PCA coefficients"):
        train(forced_config(cache=str(cache), pca_targets=True), dataset, tmp_path / "run")
    with pytest.raises(SpatialForcingError, match="needs a compressed cache"):
        train(forced_config(pca_targets=True), dataset, tmp_path / "run")
    few = extract(dataset, load_teacher(TEACHER), TEACHER, tmp_path / "features", stored_in(6))
    with pytest.raises(SpatialForcingError, match="multiple of 4; these are 6 wide"):
        train(forced_config(cache=str(few), pca_targets=True), dataset, tmp_path / "run")


# ---- --policy.path with forcing flags -------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain_checkpoint(dataset, tmp_path_factory) -> Path:
    out = train(
        TinyConfig(**SMALL | {"chunk_size": 3, "n_action_steps": 3}),
        dataset,
        tmp_path_factory.mktemp("plain") / "run",
        2,
    )
    return checkpoints(out)[2]


def test_a_plain_checkpoint_is_trained_on_with_forcing_flags(
    plain_checkpoint, dataset, cache, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    flags = [
        f"--policy.path={plain_checkpoint}", f"--policy.forcing.cache={cache}",
        "--policy.forcing.loss_weight=0.3", "--policy.push_to_hub=false",
        "--dataset.repo_id=local/small", f"--dataset.root={dataset}",
        f"--output_dir={out}", "--steps=2", "--batch_size=4", "--num_workers=0", "--save_freq=2",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", sys.argv)
    TrainCommand().run(flags)
    after = checkpoints(out)[2]
    config = json.loads((after / "config.json").read_text())
    assert (config["type"], config["chunk_size"]) == ("tiny", 3)
    assert "forcing" not in config
    assert json.loads((after / "spatial_forcing" / "forcing.json").read_text())["loss_weight"] == 0.3
    moved = load_file(after / "model.safetensors")
    start = load_file(plain_checkpoint / "model.safetensors")
    # Two small steps away from where the checkpoint was, not a policy started anew.
    assert moved.keys() == start.keys()
    assert 0 < max((moved[k] - start[k]).abs().max().item() for k in start) < 0.01


def test_without_forcing_flags_a_checkpoint_is_what_it_says(plain_checkpoint):
    patches.take_forcing_flags()
    assert type(PreTrainedConfig.from_pretrained(plain_checkpoint)) is TinyConfig
    lower = PreTrainedConfig.from_pretrained(plain_checkpoint, cli_overrides=["--n_action_steps=2"])
    assert type(lower) is TinyConfig
    assert lower.n_action_steps == 2


def test_forcing_flags_for_a_policy_without_a_record_name_those_that_have_one(plain_checkpoint, tmp_path):
    shutil.copytree(plain_checkpoint, tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"type": "diffusion"}))
    patches.take_forcing_flags()
    with pytest.raises(SpatialForcingError, match=r"'diffusion'.*no record of. It has: act, .*pi05, .*tiny"):
        PreTrainedConfig.from_pretrained(tmp_path / "other", cli_overrides=["--forcing.loss_weight=0.3"])


@pytest.mark.parametrize(
    ("old", "value", "says"),
    [
        ("weight", 2.0, r"forcing.weight is called forcing.loss_weight now.*loss_weight=2.0"),
        ("weights", "a.pt", r"called forcing.teacher_checkpoint now"),
        ("coefficients", True, r"called forcing.pca_targets now"),
        ("depth", 3, r"forcing.depth is called forcing.site now.*site=blocks.3"),
    ],
)
def test_options_under_their_earlier_names_are_refused_with_the_new_one(old, value, says):
    with pytest.raises(SpatialForcingError, match=says):
        ForcingConfig(**{old: value})
