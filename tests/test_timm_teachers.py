"""C-RADIO as a teacher, from a small checkpoint of timm's own class."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from teacher_laws import assert_one_pass_is_several, images
from torch.testing import assert_close

from spatial_forcing.teachers import RECORDS, WeightsError, load_teacher
from spatial_forcing.teachers.timm_teacher import RECORDS as TIMM_RECORDS

timm = pytest.importorskip("timm", reason="timm is not installed")

SIZES = {"embed_dim": 48, "depth": 3, "num_heads": 2}
OPTIONS = {"resolution": 64, "dtype": torch.float32, "device": "cpu", "batch_size": 32}


@pytest.fixture(scope="module")
def record():
    return replace(RECORDS["c-radio-base"], sizes=tuple(SIZES.items()))


@pytest.fixture(scope="module")
def weights(record, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    model = timm.create_model(record.model, pretrained=False, **SIZES)
    path = tmp_path_factory.mktemp("radio") / "model.safetensors"
    save_file(model.state_dict(), path)
    return path


def test_features_are_those_of_timm(record, weights):
    teacher = record.load(weights=weights, layer=-1, **OPTIONS)
    assert (teacher.width, teacher.patch, teacher.layers, teacher.multi_view) == (48, 16, 3, False)
    model = timm.create_model(
        record.model, pretrained=True, pretrained_cfg_overlay={"file": str(weights)}, **SIZES
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


def test_timm_knows_the_models_of_the_records():
    for record in TIMM_RECORDS:
        known = timm.get_pretrained_cfg(record.model)
        assert (known.hf_hub_id, known.license) == (record.repo, "nvidia-open-model-license")
        with torch.device("meta"):
            model = timm.create_model(record.model, pretrained=False)
        assert (model.embed_dim, len(model.blocks)) == (record.width, record.layers)
        assert sum(p.numel() for p in model.parameters()) == record.parameters
