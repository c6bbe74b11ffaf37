"""C-RADIO as a teacher, from a small checkpoint of timm's own class."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_teachers import TIMM_SIZE, timm_folder
from teacher_laws import assert_one_pass_is_several, images
from torch.testing import assert_close

from spatial_forcing.teachers import RECORDS, WeightsError, load_teacher
from spatial_forcing.teachers.timm_teacher import RECORDS as TIMM_RECORDS

timm = pytest.importorskip("timm", reason="timm is not installed")

OPTIONS = {"resolution": 64, "dtype": torch.float32, "device": "cpu", "batch_size": 32}


@pytest.fixture(scope="module")
def record():
    return replace(RECORDS["c-radio-base"], sizes=tuple(TIMM_SIZE.items()))


@pytest.fixture(scope="module")
def weights(record, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    model = timm.create_model(record.model, pretrained=False, **TIMM_SIZE)
    path = tmp_path_factory.mktemp("radio") / "model.safetensors"
    save_file(model.state_dict(), path)
    return path


def test_features_are_those_of_timm(record, weights):
    teacher = record.load(weights=weights, layer=-1, **OPTIONS)
    assert (teacher.width, teacher.patch, teacher.layers, teacher.multi_view) == (48, 16, 3, False)
    model = timm.create_model(
        record.model, pretrained=True, pretrained_cfg_overlay={"file": str(weights)}, **TIMM_SIZE
    )
    x = images(height=64, width=64)
    mean, std = (torch.tensor(model.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        tokens = model.eval().forward_features(((x - mean) / std).flatten(0, 1))
    expected = tokens[:, model.num_prefix_tokens :].unflatten(1, (4, 4)).unflatten(0, (2, 2))
    assert_close(teacher(x).tokens_BVHWC, expected, rtol=0, atol=1e-5)


def test_one_pass_is_several(record, weights):
    def load(layer):
        return record.load(weights=weights, layer=layer, **OPTIONS)

    assert_one_pass_is_several(load(-1), load, images(height=64, width=64))


def test_weights_of_another_size_are_refused(weights, tmp_path):
    with pytest.raises(WeightsError, match="do not fit naflexvit_base_patch16_radio_v3"):
        load_teacher("c-radio-base", weights=weights)
    with pytest.raises(WeightsError, match="there is no such file"):
        load_teacher("c-radio-base", weights=tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return timm_folder(tmp_path_factory.mktemp("timm"))


def test_a_folder_of_timm_is_a_teacher(folder):
    teacher = load_teacher(folder)
    assert (teacher.width, teacher.patch, teacher.layers, teacher.resolution) == (48, 16, 3, (64, 64))
    assert teacher.licence == "apache-2.0"
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    x = images(height=64, width=64)
    mean, std = (torch.tensor(model.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        tokens = model.forward_features(((x - mean) / std).flatten(0, 1))[:, 1:]
    assert_close(teacher(x).tokens_BVHWC.flatten(2, 3).flatten(0, 1), tokens, rtol=0, atol=1e-5)
    assert load_teacher(folder, resolution=(96, 64))(x).tokens_BVHWC.shape[2:4] == (6, 4)


def test_the_fingerprint_of_a_folder_is_not_its_place_but_its_model(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "moved")
    assert load_teacher(tmp_path / "moved").fingerprint == load_teacher(folder).fingerprint
    said = json.loads((folder / "config.json").read_text())
    said["model_args"]["num_heads"] = 4
    (tmp_path / "moved" / "config.json").write_text(json.dumps(said))
    assert load_teacher(tmp_path / "moved").fingerprint != load_teacher(folder).fingerprint


def test_folders_of_other_models_of_timm_are_refused(folder, tmp_path):
    model = timm.create_model("test_convnext")
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    with pytest.raises(WeightsError, match=f"{tmp_path} is a ConvNeXt of timm, not a vision transformer"):
        load_teacher(tmp_path)
    shutil.copy(folder / "model.safetensors", tmp_path)
    with pytest.raises(WeightsError, match="do not fit test_convnext of timm"):
        load_teacher(tmp_path)


def test_timm_knows_the_models_of_the_records():
    for record in TIMM_RECORDS:
        known = timm.get_pretrained_cfg(record.model)
        assert (known.hf_hub_id, known.license) == (record.repo, "nvidia-open-model-license")
        with torch.device("meta"):
            model = timm.create_model(record.model, pretrained=False)
        assert (model.embed_dim, len(model.blocks)) == (record.width, record.layers)
        assert sum(p.numel() for p in model.parameters()) == record.parameters
