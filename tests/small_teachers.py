"""A small random teacher of every architecture, in a file or folder that ``load_teacher`` takes."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from spatial_forcing.teachers.da3 import DA3, DA3Config
from spatial_forcing.teachers.da3_teacher import PREFIX
from spatial_forcing.teachers.described import METADATA_KEY
from spatial_forcing.teachers.mapanything import MapAnything, MapAnythingConfig

SMALL_DA3 = DA3Config(
    img_size=56,
    embed_dim=32,
    depth=6,
    num_heads=2,
    alt_start=2,
    qknorm_start=3,
    rope_start=2,
    out_layers=(1, 2, 3, 5),
    head_features=8,
    head_channels=(4, 4, 8, 8),
    camera_depth=1,
    camera_heads=2,
)
SMALL_MAPANYTHING = MapAnythingConfig(
    img_size=56,
    embed_dim=32,
    encoder_depth=1,
    encoder_heads=2,
    depth=4,
    num_heads=2,
    read_layers=(1, 2),
    head_features=8,
    head_channels=(4, 4, 8, 8),
)
SIZE = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
TIMM_SIZE = {"embed_dim": 48, "depth": 3, "num_heads": 2}


def small_da3() -> DA3:
    torch.manual_seed(0)
    return DA3(SMALL_DA3).eval()


def small_mapanything() -> MapAnything:
    """Its residual branches matter: layer scales are one."""
    torch.manual_seed(0)
    model = MapAnything(SMALL_MAPANYTHING).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.ones_(parameter)
    return model


def described(path: Path, weights: dict[str, torch.Tensor], architecture: str, config: Any) -> Path:
    """Writes a file of this package's format."""
    said = {"architecture": architecture, "config": asdict(config), "licence": "MIT", "multi_view": True}
    save_file(weights, path, {METADATA_KEY: json.dumps(said | {"note": "A test."})})
    return path


def da3_file(folder: Path) -> Path:
    weights = {f"{PREFIX}{name}": tensor for name, tensor in small_da3().state_dict().items()}
    return described(folder / "da3.safetensors", weights, "da3", SMALL_DA3)


def mapanything_file(folder: Path) -> Path:
    weights = small_mapanything().state_dict()
    return described(folder / "mapanything.safetensors", weights, "mapanything", SMALL_MAPANYTHING)


def transformers_model(model_type: str) -> Any:
    """A small model of the class that transformers has for a ``model_type``."""
    import transformers

    vit14 = {"image_size": 56, "patch_size": 14, **SIZE}
    vit16 = {"image_size": 64, "patch_size": 16, **SIZE}
    jepa = {"crop_size": 64, "frames_per_clip": 4, "pred_hidden_size": 24, "pred_num_attention_heads": 2}
    jepa |= {"pred_num_hidden_layers": 1, "patch_size": 16, "mlp_ratio": 2, **SIZE}
    read = {"out_indices": [0, 1, 2, 3], "reshape_hidden_states": False}
    heads = {"reassemble_hidden_size": 24, "neck_hidden_sizes": [4, 4, 4, 4], "fusion_hidden_size": 4}
    class_name, sizes = {
        "dinov2": ("Dinov2Model", vit14),
        "dinov2_with_registers": ("Dinov2WithRegistersModel", {"num_register_tokens": 4, **vit14}),
        "dinov3_vit": ("DINOv3ViTModel", {"num_register_tokens": 4, **vit16}),
        "siglip_vision_model": ("SiglipVisionModel", vit16),
        "ijepa": ("IJepaModel", vit14),
        "vjepa2": ("VJEPA2Model", jepa),
        "depth_anything": (
            "DepthAnythingForDepthEstimation",
            {"backbone_config": transformers.Dinov2Config(**vit14, **read), "patch_size": 14, **heads},
        ),
    }[model_type]
    model_class = getattr(transformers, class_name)
    torch.manual_seed(0)
    return model_class(model_class.config_class(**sizes)).eval()


def transformers_folder(model_type: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        transformers_model(model_type).save_pretrained(folder / model_type)
        return folder / model_type

    return write


def timm_folder(folder: Path) -> Path:
    """A vision transformer as timm writes it for the Hub."""
    import timm

    sizes = {"img_size": 64, "num_classes": 0, **TIMM_SIZE}
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **sizes)
    path = folder / "timm"
    timm.models.save_for_hf(model, path, model_args=sizes, safe_serialization=True)
    said = json.loads((path / "config.json").read_text())
    said["pretrained_cfg"]["input_size"] = [3, 64, 64]
    (path / "config.json").write_text(json.dumps(said))
    return path


# By the name that the file, or the folder's config.json, has for the architecture.
SMALL_TEACHERS: dict[str, Callable[[Path], Path]] = {
    "da3": da3_file,
    "mapanything": mapanything_file,
    **{
        name: transformers_folder(name)
        for name in (
            "dinov2",
            "dinov2_with_registers",
            "dinov3_vit",
            "siglip_vision_model",
            "ijepa",
            "vjepa2",
            "depth_anything",
        )
    },
    "timm": timm_folder,
}
