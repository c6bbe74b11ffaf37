"""The options of ``convert``. Nothing heavy is imported before it runs.

A released checkpoint (openvla/openvla-7b, OFT's and Spatial Forcing's fine-tuned ones) becomes one that
lerobot-eval runs and lerobot-train continues; one of LeRobot, with its adapter merged, becomes one that the
public evaluation scripts run.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(kw_only=True)
class Convert:
    """Convert a checkpoint of OpenVLA-OFT between the released layout and LeRobot's, whichever it is in."""

    checkpoint: str
    """Folder of the checkpoint, of a training run, whose last one is meant, or repository on the Hub."""
    out: Path
    """Folder of the converted checkpoint; it may not hold one yet."""
    key: str | None = None
    """Un-normalisation key: of a released checkpoint the statistics to use (its only one if None), of one of
    LeRobot what to call the data set ("lerobot" if None)."""
    cameras: tuple[str, ...] | None = None
    """LeRobot's names of the cameras, in the order of the views; the first ones are used if there are fewer
    views. What a released checkpoint that was converted before says, or observation.images.image and image2,
    if None."""
    views: int | None = None
    """Views of a released checkpoint, which no file says; OFT's LIBERO recipe (2), or 1 of plain OpenVLA, if
    None."""
    chunk: int | None = None
    """Actions per chunk of a released checkpoint with OFT; as in its LIBERO recipe (8) if None."""
    gripper: Literal["openvla", "as_recorded"] | None = None
    """What the gripper of a released checkpoint's actions means: see the policy's option of this name. What
    the checkpoint says if it was converted before, or openvla, if None."""
    inference_crop: float | None = None
    """Fraction of each image's area seen in rollouts. What the checkpoint says if it was converted before, or
    0.9, for random crops in training as the released ones had, if None."""
    tokenizer: str | None = None
    """Folder or repository of Llama's tokenizer; the released checkpoint's own, or openvla/openvla-7b."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Data type of the weights that are written; the checkpoint's own (of its language model) if None."""

    def run(self) -> None:
        """Converts the checkpoint.

        Raises:
            SpatialForcingError: it is neither, does not load, or the output folder holds a checkpoint.
        """
        from spatial_forcing.convert.openvla import convert

        print("\n".join(convert(self)))
