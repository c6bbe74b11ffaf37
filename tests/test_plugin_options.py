"""Options of the LeRobot plug-in: they reach teacher, cache and policy, or are refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from small_dataset import CAMERAS, make_dataset
from small_plugin import SMALL, TEACHER, forced_config, stored_in, train

from lerobot_policy_spatial_forcing.forcing import FeatureSource, ForcingConfig
from spatial_forcing.cache.extract import extract, extract_layers
from spatial_forcing.cache.store import CacheError
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.hosts.tiny_policy import TinyConfig
from spatial_forcing.teachers import load_teacher
from spatial_forcing.train import checkpoints, read_metrics


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
    with pytest.raises(CacheError, match="of another data set"):
        train(forced_config(cache=str(cache)), other, tmp_path / "run")


def test_standardising_needs_statistics(dataset, tmp_path):
    with pytest.raises(SpatialForcingError, match=r"forcing\.cache"):
        train(forced_config(standardize=True), dataset, tmp_path / "run")


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


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"hidden_share": 3.0}, r"above 0 and up to 1; got 3\.0"),
        ({"hidden_share": 0.0}, r"above 0 and up to 1; got 0\.0"),
        ({"hidden_share": 0.5, "projector": "conv"}, "got 0.5 for projector='conv'"),
        ({"dtype": "bf16"}, "Unknown dtype of a teacher 'bf16'"),
        ({"norm": "batch", "projector": "conv"}, "has no norm"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(tmp_path, options, says):
    with pytest.raises(SpatialForcingError, match=says):
        ForcingConfig(**options)
    path = tmp_path / "list.yaml"
    path.write_text(
        "- site: blocks.1\n-\n" + "".join(f"  {key}: {value}\n" for key, value in options.items())
    )
    with pytest.raises(SpatialForcingError, match=rf"list\.yaml, line 3: .*{says}"):
        ForcingConfig(alignments=str(path))


@pytest.mark.parametrize("name", ["a b", "items", ""])
def test_names_that_cannot_be_are_refused_with_their_entry(name):
    with pytest.raises(SpatialForcingError, match=f"Alignment 1 of .*letters, digits.*got '{name}'"):
        ForcingConfig(alignments=[{"site": "blocks.1", "name": name}])
