"""The LeRobot plug-in: sf_tiny trains with LeRobot's trainer, leaves a plain checkpoint and resumes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_dataset import CAMERAS
from small_plugin import SMALL, SfTinyPolicy, forced_config, interrupted_after, prepared, train, weights

from lerobot_policy_spatial_forcing.forcing_config import ForcingConfig
from lerobot_policy_spatial_forcing.projector_files import restore_projectors, side_folder_of
from spatial_forcing.command_names import RENAMED_FORCING
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.hosts.tiny_policy import TinyConfig, TinyPolicy
from spatial_forcing.saved_policy import LoadedPolicy
from spatial_forcing.tap import TapError
from spatial_forcing.train import checkpoints, read_metrics


@pytest.fixture(scope="module")
def forced_run(dataset, cache, tmp_path_factory) -> Path:
    return train(forced_config(cache=str(cache)), dataset, tmp_path_factory.mktemp("forced") / "run")


@pytest.fixture(scope="module")
def plain_run(dataset, tmp_path_factory) -> Path:
    return train(TinyConfig(**SMALL), dataset, tmp_path_factory.mktemp("plain") / "run")


def a_batch(loaded: LoadedPolicy, dataset: Path) -> dict:
    return next(iter(loaded.batches(loaded.dataset(dataset), batch_size=5)))


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


@pytest.fixture(scope="module")
def as_they_are(dataset, cache, tmp_path_factory) -> Path:
    """A run toward stored features that are not standardised, as those of a teacher online are."""
    config = forced_config(cache=str(cache), standardize=False)
    return train(config, dataset, tmp_path_factory.mktemp("raw") / "run")


def test_cached_and_online_give_the_same_loss(dataset, as_they_are, tmp_path):
    online = train(forced_config(), dataset, tmp_path / "run")
    for a, b in zip(read_metrics(online), read_metrics(as_they_are), strict=True):
        # The cache keeps half precision: three digits.
        assert a["align_loss"] == pytest.approx(b["align_loss"], abs=2e-4)
        assert a["action_loss"] == pytest.approx(b["action_loss"], abs=2e-4)


@pytest.mark.parametrize("control", ["shuffled", "place"])
def test_controls_train_online_and_from_a_cache_alike(dataset, cache, as_they_are, tmp_path, control):
    found = {}
    for name, source in (("online", {}), ("cached", {"cache": str(cache), "standardize": False})):
        run = train(forced_config(control=control, **source), dataset, tmp_path / name)
        found[name] = [row["align_loss"] for row in read_metrics(run)]
    assert found["online"] == pytest.approx(found["cached"], rel=2e-2)
    forced = [row["align_loss"] for row in read_metrics(as_they_are)]
    # At the first step, from the same weights; later losses may meet by chance.
    assert abs(found["cached"][0] - forced[0]) > 1e-3, "same as forcing"


@pytest.mark.parametrize(
    ("options", "standardised"),
    [
        ({}, False),
        ({"cache": "features"}, True),
        ({"cache": "features", "published": True}, False),
        ({"cache": "features", "standardize": False}, False),
        ({"cache": "features", "published": True, "standardize": True}, True),
    ],
)
def test_features_of_a_cache_are_standardised_unless_published(options, standardised):
    assert ForcingConfig(**options).standardize is standardised


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


def test_a_folder_of_something_else_is_left_alone(dataset, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(SpatialForcingError, match="not a training run"):
        train(TinyConfig(**SMALL), dataset, tmp_path / "run")
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


# ---- what a projector was trained for ---------------------------------------------------------------------


def continues(policy, at: Path) -> bool:
    saved = load_file(at / "spatial_forcing" / "projector.safetensors")
    return all(torch.equal(policy.forcing.state_dict()[name], value) for name, value in saved.items())


OTHERS = [
    ({"site": "blocks.1"}, "site: blocks.3 there, blocks.1 here"),
    ({"site": "blocks.1"}, "site: blocks.3 there, blocks.1 here"),
    ({"norm": "batch"}, "norm: layer there, batch here"),
    ({"position_embedding": 0.3}, "position_embedding: 0.1 there, 0.3 here"),
    ({"standardize": False}, "standardize: True there, False here"),
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
        said |= {old: said.pop(new) for old, new in RENAMED_FORCING.items() if new in said and old != "depth"}
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


def test_a_checkpoint_that_was_copied_in_part_is_refused(forced_run, dataset, cache, tmp_path):
    at = tmp_path / "part"
    shutil.copytree(checkpoints(forced_run)[4], at)
    (at / "spatial_forcing" / "projector.safetensors").unlink()
    with pytest.raises(SpatialForcingError, match=r"projector\.safetensors is missing.*copied in part"):
        prepared(on_top_of(at, cache), dataset)
    shutil.rmtree(at / "spatial_forcing")
    assert not continues(prepared(on_top_of(at, cache), dataset), checkpoints(forced_run)[4])


def test_a_checkpoint_on_the_hub_continues_with_its_projector(
    forced_run, dataset, cache, tmp_path, monkeypatch, caplog
):
    """The Hub as it is without a network: what was fetched before lies in its cache."""
    at, repository = checkpoints(forced_run)[4], tmp_path / "hub" / "models--me--policy"
    shutil.copytree(at, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    side = side_folder_of("me/policy", None)
    assert (side / "projector.safetensors").is_file()
    policy = prepared(forced_config(cache=str(cache)), dataset)
    restore_projectors(policy.forcing, policy.config.forcing, side)
    assert continues(policy, at)
    assert not side_folder_of("me/another", None).exists()
    assert "Whether me/another has a projector could not be found out" in caplog.text


def on_top_of(at: Path, cache: Path, **forcing):
    config = forced_config(cache=str(cache), **forcing)
    config.pretrained_path = at
    return config
