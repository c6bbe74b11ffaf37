"""DINOv2, DINOv3 and SigLIP as teachers, from small checkpoints of transformers' own classes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_teachers import SIZE, transformers_model
from teacher_laws import assert_one_pass_is_several, images
from torch.testing import assert_close

from spatial_forcing.errors import UnknownNameError
from spatial_forcing.teachers import RECORDS, TeacherInputError, WeightsError, load_teacher
from spatial_forcing.teachers.model import IMAGENET_MEAN, IMAGENET_STD

transformers = pytest.importorskip("transformers", reason="transformers is not installed")


def checkpoint(name: str, folder: Path) -> tuple[Any, int]:
    """A small model of a kind, saved as the Hub has it, and the side of its images."""
    siglip = {"patch_size": 16, "image_size": 64, **SIZE}
    text = {"vocab_size": 32, "max_position_embeddings": 8, **SIZE}
    config, model_class = {
        "dinov2": (transformers.Dinov2Config(patch_size=14, image_size=56, **SIZE), "Dinov2Model"),
        "siglip": (transformers.SiglipVisionConfig(**siglip), "SiglipVisionModel"),
        "whole siglip": (
            transformers.SiglipConfig(vision_config=siglip, text_config=text),
            "SiglipModel",
        ),
        "dinov3": (transformers.DINOv3ViTConfig(num_register_tokens=4, **siglip), "DINOv3ViTModel"),
    }[name]
    model = getattr(transformers, model_class)(config).eval()
    with torch.no_grad():  # numbers that every machine writes alike
        for i, (key, parameter) in enumerate(sorted(model.named_parameters())):
            if "text_model" not in key:
                numbers = torch.arange(parameter.numel()) * (3 + i % 7) % 17 - 8
                parameter.copy_((numbers / 32).view_as(parameter))
    model.save_pretrained(folder)
    return model, 56 if name == "dinov2" else 64


# Of the version that cut the model behind the wanted layer: by layer fingerprint and some features.
FIXED = {
    ("dinov2", 1): ("1e763c50073cae17", (0.19970778, -0.12295334, -0.15348442)),
    ("dinov2", 2): ("a7a5df451f76cf5e", (0.21111786, -0.12153588, -0.15179172)),
    ("siglip", 1): ("df983bd6d333c6b0", (-0.23610288, -0.22534458, -0.23138024)),
    ("siglip", 2): ("bf52d3ebee916cfb", (-0.14554673, -0.25590461, -0.22129402)),
    ("whole siglip", 1): ("6aa9f2ab005b1ad2", (-0.23610288, -0.22534458, -0.23138024)),
    ("whole siglip", 2): ("548354020c5d9555", (-0.14554673, -0.25590461, -0.22129402)),
    ("dinov3", 1): ("1c10b057afb867f6", (-0.12302065, -0.24458116, -0.0625)),
    ("dinov3", 2): ("3a91fddcab021131", (-0.16481197, -0.24559793, -0.0625)),
}


@pytest.mark.parametrize(("name", "layer"), FIXED)
def test_fingerprints_and_features_stay_what_they_are(name, layer, tmp_path):
    _, side = checkpoint(name, tmp_path)
    teacher = load_teacher(tmp_path, layer=layer, resolution=side)
    fingerprint, features = FIXED[name, layer]
    assert teacher.fingerprint == fingerprint
    x = (torch.arange(2 * 3 * side**2) * 7 % 256 / 255).view(1, 2, 3, side, side)
    assert_close(teacher(x).tokens_BVHWC[0, 1, 2, 3, :3], torch.tensor(features), rtol=0, atol=1e-5)


def test_of_the_whole_of_siglip_nothing_is_printed(tmp_path, capfd):
    checkpoint("whole siglip", tmp_path)
    capfd.readouterr()
    load_teacher(tmp_path, resolution=64)
    assert "UNEXPECTED" not in "".join(capfd.readouterr())


def test_models_of_another_type_are_refused(tmp_path):
    transformers.ViTConfig(**SIZE).save_pretrained(tmp_path)
    with pytest.raises(UnknownNameError, match=r"model_type of a teacher 'vit'.*dinov3_vit"):
        load_teacher(tmp_path)


def test_a_folder_of_another_transformers_model_is_refused_under_a_name(tmp_path):
    size = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    transformers.Dinov2Model(transformers.Dinov2Config(image_size=28, **size)).save_pretrained(tmp_path)
    for name, said in (("dinov2-base", "dinov2 of width 768"), ("siglip-base", "siglip of width 768")):
        with pytest.raises(WeightsError, match=rf"is a dinov2 of width 24, not '{name}'.*\({said}\)"):
            load_teacher(name, weights=tmp_path)


@pytest.mark.parametrize("name", ["dinov2", "siglip_vision_model", "dinov3_vit"])
def test_2d_controls_equal_the_transformers_model(name, tmp_path):
    special = {"dinov2": 1, "siglip_vision_model": 0, "dinov3_vit": 5}[name]
    model = transformers_model(name)
    config = model.config
    model.save_pretrained(tmp_path)
    teacher = load_teacher(tmp_path)
    assert (teacher.licence, teacher.multi_view, teacher.patch) == ("unknown", False, config.patch_size)
    x = images(height=config.image_size, width=config.image_size)
    mean, std = ((0.5,) * 3, (0.5,) * 3) if "siglip" in name else (IMAGENET_MEAN, IMAGENET_STD)
    normed = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        expected = model(pixel_values=normed.flatten(0, 1)).last_hidden_state[:, special:]
    found = teacher(x).tokens_BVHWC
    assert_close(found.flatten(2, 3).flatten(0, 1), expected, rtol=0, atol=1e-5)
    side = 2 * config.image_size
    assert load_teacher(tmp_path, resolution=side)(x).tokens_BVHWC.shape[2:4] == (8, 8)
    assert_one_pass_is_several(teacher, lambda **options: load_teacher(tmp_path, **options), x)
    # A model that ends after layer 1, and its final norm: what cutting the model there gives.
    config.num_hidden_layers = 2
    shorter = type(model)(config).eval()
    shorter.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        expected = shorter(pixel_values=normed.flatten(0, 1)).last_hidden_state[:, special:]
    assert torch.equal(teacher.layers_of(x, (1,))[1].tokens_BVHWC.flatten(2, 3).flatten(0, 1), expected)


@pytest.mark.parametrize("name", ["dinov2_with_registers", "ijepa", "depth_anything", "vjepa2"])
def test_other_single_view_teachers_equal_the_transformers_model(name, tmp_path):
    """Those with register tokens, without a class token, inside another model, and of clips."""
    model = transformers_model(name)
    model.save_pretrained(tmp_path)
    teacher, x = load_teacher(tmp_path), images(height=56, width=56)
    side = 64 if name == "vjepa2" else 56
    x = images(height=side, width=side)
    mean, std = (torch.tensor(of).view(3, 1, 1) for of in (IMAGENET_MEAN, IMAGENET_STD))
    normed = ((x - mean) / std).flatten(0, 1)
    with torch.no_grad():
        if name == "depth_anything":
            hidden = model.backbone(normed, output_hidden_states=True).hidden_states[-1]
            expected = model.backbone.layernorm(hidden)[:, 1:]
        elif name == "vjepa2":
            clip = normed[:, None].repeat(1, 2, 1, 1, 1)
            expected = model.get_vision_features(clip)
        else:
            special = 5 if name == "dinov2_with_registers" else 0
            expected = model(pixel_values=normed).last_hidden_state[:, special:]
    assert (teacher.width, teacher.multi_view, teacher.resolution) == (24, False, (side, side))
    assert_close(teacher(x).tokens_BVHWC.flatten(2, 3).flatten(0, 1), expected, rtol=0, atol=1e-5)
    assert_one_pass_is_several(teacher, lambda **options: load_teacher(tmp_path, **options), x)
    if name == "vjepa2":
        with pytest.raises(TeacherInputError, match="takes images of 64 x 64 pixels only; got 128"):
            load_teacher(tmp_path, resolution=128)


def test_incomplete_transformers_weights_are_refused(tmp_path):
    size = {"hidden_size": 384, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 1}
    transformers.Dinov2Model(transformers.Dinov2Config(image_size=56, **size)).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("layernorm.weight")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"layernorm\.weight"):
        load_teacher("dinov2-small", weights=tmp_path)
    with pytest.raises(WeightsError, match=r"config\.json"):
        load_teacher("dinov2-base", weights=tmp_path / "absent")


def test_records_say_how_many_parameters_the_released_models_have():
    """Built without memory at the sizes of the Hub's config.json files, as far as these classes' defaults are
    not theirs."""
    vit14 = {"patch_size": 14, "image_size": 518}
    sizes = {
        "dinov2-small": ("Dinov2", {"hidden_size": 384, "num_attention_heads": 6, **vit14}),
        "dinov2-base": ("Dinov2", vit14),
        "dinov2-large": (
            "Dinov2",
            {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, **vit14},
        ),
        "dinov2-base-reg": ("Dinov2WithRegisters", vit14),
        "siglip-base": ("SiglipVision", {}),
        "dinov3-base": (
            "DINOv3ViT",
            {
                "hidden_size": 768,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "intermediate_size": 3072,
                "num_register_tokens": 4,
            },
        ),
        "ijepa-huge": (
            "IJepa",
            {
                "hidden_size": 1280,
                "num_hidden_layers": 32,
                "num_attention_heads": 16,
                "intermediate_size": 5120,
                "patch_size": 14,
            },
        ),
        "vjepa2-large": ("VJEPA2", {}),
    }
    for name, (kind, size) in sizes.items():
        config = getattr(transformers, f"{kind}Config")(**size)
        with torch.device("meta"):
            model = getattr(transformers, f"{kind}Model")(config)
        record = RECORDS[name]
        assert sum(p.numel() for p in model.parameters()) == record.parameters, name
        assert (config.hidden_size, config.num_hidden_layers) == (record.width, record.layers), name
