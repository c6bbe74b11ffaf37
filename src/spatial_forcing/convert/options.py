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
    """Folder of the checkpoint; of a released one the name of its repository on the Hub will do."""
    out: Path
    """Folder of the converted checkpoint; it may not hold one yet."""
    key: str | None = None
    """Un-normalisation key: of a released checkpoint the statistics to use (its only one if None), of one of
    LeRobot what to call the data set ("lerobot" if None)."""
    cameras: tuple[str, ...] = ("observation.images.image", "observation.images.image2")
    """LeRobot's names of the cameras, in the order of the views; the first is used if there is one view."""
    views: int | None = None
    """Views of a released checkpoint, which no file says; OFT's LIBERO recipe (2), or 1 of plain OpenVLA, if
    None."""
    chunk: int | None = None
    """Actions per chunk of a released checkpoint with OFT; as in its LIBERO recipe (8) if None."""
    gripper: Literal["openvla", "as_recorded"] = "openvla"
    """What the gripper of a released checkpoint's actions means: see the policy's option of this name."""
    inference_crop: float = 0.9
    """Fraction of each image's area seen in rollouts; 0.9 for checkpoints trained with random crops, as the
    released ones are."""
    tokenizer: str | None = None
    """Folder or repository of Llama's tokenizer; the released checkpoint's own, or openvla/openvla-7b."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Data type of the weights of a converted released checkpoint."""

    def run(self) -> None:
        """Converts the checkpoint.

        Raises:
            SpatialForcingError: it is neither, does not load, or the output folder holds a checkpoint.
        """
        from spatial_forcing.convert.openvla import convert

        print("\n".join(convert(self)))
