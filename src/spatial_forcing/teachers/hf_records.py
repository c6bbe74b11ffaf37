"""Records of the teachers of the transformers library; ``hf.py`` loads them."""

from typing import Any

from spatial_forcing.teachers.hf import TransformersRecord, load_transformers


def _control(
    name: str, repo: str, what: str, types: tuple[str, ...], width: int, parameters: int, **more: Any
) -> Any:
    """Builds the record of a 2D control on the Hub."""
    said = {
        "width": width,
        "parameters": parameters,
        "layers": 12,
        "loader": load_transformers,
        "licence": "Apache-2.0",
        "terms": f"https://huggingface.co/{repo}",
        "resolution": 224,
        "patch": 14 if "/14" in what else 16,
        "control": True,
    }
    said |= more
    note = f"2D control: {what}." if said["control"] else f"{what[0].upper()}{what[1:]}."
    return TransformersRecord(name=name, repo=repo, note=note, architecture=(types, width), **said)


_DINO, _REG = ("dinov2",), ("dinov2_with_registers",)
_SIGLIP = ("siglip", "siglip_vision_model")
RECORDS: tuple[TransformersRecord, ...] = (
    _control("dinov2-small", "facebook/dinov2-small", "DINOv2 ViT-S/14", _DINO, 384, 22_056_576),
    _control("dinov2-base", "facebook/dinov2-base", "DINOv2 ViT-B/14", _DINO, 768, 86_580_480),
    _control(
        "dinov2-large",
        "facebook/dinov2-large",
        "DINOv2 ViT-L/14, the encoder VGGT starts from",
        _DINO,
        1024,
        304_368_640,
        layers=24,
    ),
    _control(
        "dinov2-base-reg",
        "facebook/dinov2-with-registers-base",
        "DINOv2 ViT-B/14, registers",
        _REG,
        768,
        86_583_552,
    ),
    _control("siglip-base", "google/siglip-base-patch16-224", "SigLIP ViT-B/16", _SIGLIP, 768, 92_884_224),
    _control(
        "siglip2-base", "google/siglip2-base-patch16-224", "SigLIP 2 ViT-B/16", _SIGLIP, 768, 92_884_224
    ),
    _control(
        "dinov3-base",
        "facebook/dinov3-vitb16-pretrain-lvd1689m",
        "DINOv3 ViT-B/16",
        ("dinov3_vit",),
        768,
        85_660_416,
        licence="DINOv3 License",
        gated=True,
    ),
    _control(
        "depth-anything-v2-small",
        "depth-anything/Depth-Anything-V2-Small-hf",
        "the DINOv2 ViT-S/14 that Depth Anything V2 fine-tuned for depth of single images",
        ("depth_anything",),
        384,
        22_056_576,
        resolution=518,
        control=False,
    ),
    _control(
        "ijepa-huge",
        "facebook/ijepa_vith14_1k",
        "I-JEPA ViT-H/14",
        ("ijepa",),
        1280,
        630_762_240,
        layers=32,
        licence="CC-BY-NC-4.0",
        non_commercial=True,
    ),
    _control(
        "vjepa2-large",
        "facebook/vjepa2-vitl-fpc64-256",
        "V-JEPA 2 ViT-L/16, which sees a clip of the image standing still",
        ("vjepa2",),
        1024,
        325_971_328,
        layers=24,
        licence="MIT",
        resolution=256,
    ),
)
