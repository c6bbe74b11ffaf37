"""The teachers known by name: where their weights are, and on what terms."""

from dataclasses import dataclass
from typing import Literal

from spatial_forcing.teachers.vggt import VGGTConfig

TINY = VGGTConfig(
    img_size=112,
    embed_dim=112,
    depth=4,
    vit_depth=2,
    num_heads=4,
    camera_depth=1,
    dpt_layers=(0, 1, 2, 3),
    dpt_features=16,
    dpt_channels=(16, 24, 32, 32),
    dpt_hidden=16,
)


@dataclass(frozen=True)
class TeacherRecord:
    """One teacher by name.

    Attributes:
        name: what `load_teacher` calls it.
        family: how it is built.
        licence: SPDX identifier, or the name, of the terms of the weights.
        terms: where the terms are to be read.
        non_commercial: whether they forbid commercial use.
        gated: whether the Hub asks to accept the terms first.
        repo, files: on the Hub; the first of the files that exists is taken.
        packaged: file name of weights that come with this package.
        config: sizes, where the weights do not carry them.
        resolution: default resolution in pixels.
        multi_view: whether the views of a scene see each other.
        note: one sentence for a table.
        described: the note that this package's own weights of it carry in their file.
        architecture: what config.json says of it, for the family of transformers: ways to write the
            `model_type`, and the `hidden_size`.
    """

    name: str
    family: Literal["vggt", "untrained", "pixels", "transformers"]
    licence: str
    resolution: int
    note: str
    terms: str = "https://www.apache.org/licenses/LICENSE-2.0"
    non_commercial: bool = False
    gated: bool = False
    repo: str | None = None
    files: tuple[str, ...] = ()
    packaged: str | None = None
    config: VGGTConfig | None = None
    multi_view: bool = False
    described: str | None = None
    architecture: tuple[tuple[str, ...], int] | None = None


def _hub(name: str, repo: str, note: str, **kwargs) -> TeacherRecord:
    terms = f"https://huggingface.co/{repo}"
    defaults = {"family": "transformers", "licence": "Apache-2.0", "resolution": 224, "terms": terms}
    return TeacherRecord(name=name, repo=repo, note=note, **{**defaults, **kwargs})


_DINOV2 = ("dinov2",)
_SCENES = "Small VGGT trained on simulated Meta-World scenes"

_ALL = (
    _hub(
        "vggt-1b",
        "facebook/VGGT-1B",
        "VGGT-1B, the teacher of the paper.",
        family="vggt",
        licence="CC-BY-NC-4.0",
        non_commercial=True,
        files=("model.safetensors", "model.pt"),
        config=VGGTConfig(),
        resolution=518,
        multi_view=True,
    ),
    TeacherRecord(
        name="vggt-tiny-sim",
        family="vggt",
        licence="Apache-2.0",
        packaged="vggt-tiny-sim.safetensors",
        resolution=TINY.img_size,
        multi_view=True,
        note="A small VGGT trained on simulated Meta-World scenes; comes with this package.",
        described=f"{_SCENES}; geometry objective, frame first-camera.",
    ),
    TeacherRecord(
        name="vggt-tiny-sim-2d",
        family="vggt",
        licence="Apache-2.0",
        packaged="vggt-tiny-sim-2d.safetensors",
        resolution=TINY.img_size,
        note="2D control: the same model and images, trained to fill in masked patches of single views.",
        described=f"{_SCENES}; masked objective.",
    ),
    TeacherRecord(
        name="untrained-tiny",
        family="untrained",
        licence="Apache-2.0",
        config=TINY,
        resolution=TINY.img_size,
        multi_view=True,
        note="Control: the small VGGT with its initial random weights (always the same).",
    ),
    TeacherRecord(
        name="pixels",
        family="pixels",
        licence="Apache-2.0",
        resolution=TINY.img_size,
        note="Control: the pixels of each patch.",
    ),
    _hub(
        "dinov2-small", "facebook/dinov2-small", "2D control: DINOv2 ViT-S/14.", architecture=(_DINOV2, 384)
    ),
    _hub("dinov2-base", "facebook/dinov2-base", "2D control: DINOv2 ViT-B/14.", architecture=(_DINOV2, 768)),
    _hub(
        "dinov2-large",
        "facebook/dinov2-large",
        "2D control: DINOv2 ViT-L/14, the encoder VGGT starts from.",
        architecture=(_DINOV2, 1024),
    ),
    _hub(
        "siglip-base",
        "google/siglip-base-patch16-224",
        "2D control: SigLIP ViT-B/16.",
        architecture=(("siglip", "siglip_vision_model"), 768),
    ),
    _hub(
        "dinov3-base",
        "facebook/dinov3-vitb16-pretrain-lvd1689m",
        "2D control: DINOv3 ViT-B/16.",
        licence="DINOv3 License",
        gated=True,
        architecture=(("dinov3_vit",), 768),
    ),
)

RECORDS: dict[str, TeacherRecord] = {record.name: record for record in _ALL}
