"""What stored features cost in truth when the policy's images are augmented.

    spatial-forcing collect --out demos --episodes 20
    python benchmarks/cache_price.py --dataset demos

An image is cropped, turned or mirrored. Online, the teacher looks at the result. From the cache, the
features of the whole image are resampled by the same affine: the teacher saw the objects at another scale
and place, with what the crop cut off around them. The table says how alike the two are, as cosines between
tokens less the mean token (teacher tokens share a large component that makes any two alike), on valid tokens:

    online ~ cache        the price of caching
    online ~ whole        the same without compression: the part of the price that is resampling
    whole ~ cache         the part that is compression
    online ~ other frame  the scale: the same place of another frame, drawn at random

Writes benchmarks/cache_price.json.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from record import made_with
from torch import Tensor

from spatial_forcing import load_teacher
from spatial_forcing.cache.codec import CodecOptions
from spatial_forcing.cache.extract import Extraction, extract, open_source
from spatial_forcing.cache.passes import spread
from spatial_forcing.cache.store import FeatureStore
from spatial_forcing.features import Features
from spatial_forcing.grid import crop, flip, identity, resample, rotation


@dataclass
class Args:
    """Options of the benchmark."""

    dataset: Path
    """A LeRobotDataset's folder, or its name on the Hub."""
    teacher: str = "vggt-tiny-sim"
    """A registered teacher."""
    frames: int = 64
    """Frames to compare on, evenly spread over the data set."""
    fidelity: float = 0.99
    """Of the cache."""
    out: Path = Path(__file__).parent / "cache_price.json"
    """Where the numbers go."""


def central(part: float) -> Tensor:
    """A crop of the image's middle, ``part`` of each side."""
    edge = (1 - part) / 2
    return crop(edge, edge, 1 - edge, 1 - edge)


AUGMENTATIONS: dict[str, Tensor] = {
    "none": identity(),
    "shift by 1/16": crop(1 / 16, 0.0, 17 / 16, 1.0),
    "crop 95 %": central(0.95),
    "crop 90 %": central(0.9),
    "crop 80 %": central(0.8),
    "crop 60 %": central(0.6),
    "corner crop 80 %": crop(0.0, 0.0, 0.8, 0.8),
    "turn by 5 degrees": rotation(5),
    "turn by 15 degrees": rotation(15),
    "mirror": flip(),
}


@torch.no_grad()
def main(args: Args) -> None:
    """Compares and writes the table."""
    made = made_with(args)
    teacher = load_teacher(args.teacher)
    read, source = open_source(args.dataset, teacher, args.teacher, Extraction())
    index = spread(source.frames, args.frames)
    images = read(index)
    with tempfile.TemporaryDirectory() as folder:
        how = Extraction(codec=CodecOptions("pca-int8", fidelity=args.fidelity))
        root = extract(args.dataset, teacher, args.teacher, Path(folder) / "features", how)
        store = FeatureStore(root)
        stored, whole = store.read(torch.tensor(index)), teacher(images)
        mean_C = store.stats[0]
        rows = [
            {"augmentation": name, **compared(name, affine, images, stored, whole, teacher, mean_C)}
            for name, affine in AUGMENTATIONS.items()
        ]
        result = made | {
            "frames": len(index),
            "pictures": source.pictures,
            "grid": list(whole.tokens_BVHWC.shape[2:4]),
            "codec": store.codec_record,
            "rows": rows,
        }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    names = [key for key in rows[0] if key != "augmentation"]
    print("| augmentation | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for row in rows:
        print(f"| {row['augmentation']} | " + " | ".join(f"{row[name]:.3f}" for name in names) + " |")
    print(args.out)


def compared(
    name: str,
    affine_23: Tensor,
    images_BV3HW: Tensor,
    stored: Features,
    whole: Features,
    teacher: torch.nn.Module,
    mean_C: Tensor,
) -> dict[str, float]:
    """Mean cosines of one augmentation, and the part of the tokens that lie in the recorded image."""
    _, _, rows, cols, _ = whole.tokens_BVHWC.shape
    online = teacher(warped(images_BV3HW, affine_23)).tokens_BVHWC - mean_C
    cached, valid = resample(stored, rows, cols, affine_23)
    raw = resample(whole, rows, cols, affine_23).tokens_BVHWC - mean_C
    cached = cached - mean_C
    other = torch.randperm(len(online), generator=torch.Generator().manual_seed(0))
    assert valid.any(), f"{name} leaves nothing of the image"

    def cosine(a: Tensor, b: Tensor) -> float:
        return round(F.cosine_similarity(a, b, dim=-1)[valid].mean().item(), 4)

    return {
        "online ~ cache": cosine(online, cached),
        "online ~ whole": cosine(online, raw),
        "whole ~ cache": cosine(raw, cached),
        "online ~ other frame": cosine(online, online[other]),
        "valid": round(valid.float().mean().item(), 4),
    }


def warped(images_BV3HW: Tensor, affine_23: Tensor) -> Tensor:
    """The images as the policy gets them; places outside are black."""
    flat = images_BV3HW.flatten(0, 1)
    # grid_sample counts from -1 to 1 where affines count from 0 to 1.
    linear, shift = affine_23[:, :2], affine_23[:, 2]
    theta = torch.cat([linear, (linear.sum(1) + 2 * shift - 1)[:, None]], dim=1)
    grid = F.affine_grid(theta.expand(len(flat), 2, 3), list(flat.shape), align_corners=False)
    moved = F.grid_sample(flat, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved.clamp(0, 1).view_as(images_BV3HW)


if __name__ == "__main__":
    main(tyro.cli(Args))
