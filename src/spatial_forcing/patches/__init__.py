"""All monkey patches of LeRobot, with their records and the functions that apply them.

Nothing is patched when a package is imported or a configuration is built: each patch has a named function,
which is called where its record says. All are idempotent, check what they rely on, and say so when LeRobot
has changed (:class:`LeRobotChanged`). ``undo_all()`` takes them back.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from spatial_forcing import guard
from spatial_forcing.patches.record import LeRobotChanged, Patch, is_on, lerobots, replaced, undo_all

__all__ = [
    "PATCHES",
    "LeRobotChanged",
    "Patch",
    "for_training",
    "is_on",
    "read_chunks_without_images",
    "replaced",
    "say_errors_last",
    "take_forcing_flags",
    "track_groot_crops",
    "track_image_transforms",
    "trainer_with",
    "undo_all",
]

BOTH = "0.6.1 and its main branch of 2026-08-23 (0.6.2 in development)"

CHUNKS = Patch(
    name="chunks without images",
    target="lerobot.datasets.dataset_reader.DatasetReader: get_item, __reduce_ex__",
    what="Readers of data sets that store images decode none beside the rows of an action chunk; frames "
    "are the same bit for bit.",
    why="LeRobot decodes the images of every frame of a chunk and throws them away (4.6 times the time "
    "with chunks of 8). Its trainer opens the data set itself and hands it to nobody.",
    when="A policy with forcing is made (after the data set, before it is read); spatial-forcing train.",
    versions=BOTH,
    upstream="Reading of a chunk's rows the asked columns only (DatasetReader._query_hf_dataset).",
    without="Data sets are read by LeRobot's own reader: slower, the frames are the same.",
)
TRANSFORMS = Patch(
    name="image transforms",
    target="lerobot.datasets.dataset_reader.DatasetReader: get_item, __reduce_ex__; "
    "lerobot.datasets.streaming_dataset.StreamingLeRobotDataset: __iter__, __reduce_ex__",
    what="Frames say where the image transforms moved their images "
    "(observation.spatial_forcing_affine.<camera>); streaming data sets with transforms are refused.",
    why="Stored features are of the images as recorded and must move with them; LeRobot forgets what it "
    "drew.",
    when="A policy with forcing is made that is trained toward stored features.",
    versions=BOTH,
    upstream="Image transforms that return what they drew, or a data set class of one's own in its trainer.",
    without="Training toward stored features (forcing.cache) is refused, because they could not follow image "
    "transforms. Train with the teacher online.",
)
CROPS = Patch(
    name="GR00T's crops",
    target="lerobot.policies.groot.processor_groot: GrootN17PackInputsStep.__call__, "
    "GrootN17VLMEncodeStep.__call__, and inside the latter its two image transforms",
    what="GR00T's preprocessor adds to a batch which cameras it packed and how it cropped them.",
    why="Stored features, forcing.cameras and the depth probe are of whole images of named cameras. Steps "
    "that are loaded from a checkpoint are made by LeRobot, which asks nobody for their class.",
    when="A GR00T policy with forcing is made that is trained toward stored features or has "
    "forcing.cameras (before its preprocessor); spatial-forcing doctor of a GR00T policy; in loops of "
    "one's own by hand.",
    versions=BOTH,
    upstream="The camera names and the crop window in the complementary data.",
    without="GR00T with stored features, with forcing.cameras or in the depth probe is refused. Train with "
    "the teacher online and all cameras.",
)
FLAGS = Patch(
    name="forcing flags beside --policy.path",
    target="lerobot.configs.PreTrainedConfig.from_pretrained",
    what="With --policy.forcing flags a plain checkpoint's configuration is read as that with forcing.",
    why="LeRobot takes the type from the checkpoint and refuses flags which that type does not have. In "
    "its own command nothing of a plug-in runs in between except its import, so this is a flag of "
    "spatial-forcing train and doctor; lerobot-train takes --policy.type=sf_<type> "
    "--policy.pretrained_path=<checkpoint>.",
    when="spatial-forcing train or doctor reads its flags.",
    versions=BOTH,
    upstream="--policy.type beside --policy.path, for a type that extends the checkpoint's.",
    without="Give --policy.type=sf_<type> --policy.pretrained_path=<checkpoint> instead of --policy.path.",
)
TRAINER = Patch(
    name="the trainer before its first step",
    target="lerobot.scripts.lerobot_train: make_pre_post_processors, update_policy, init_logging, "
    "inside_slurm",
    what="LeRobot's trainer notes its first batch and stops there; put back at once.",
    why="The doctor looks at exactly what would be trained: data set, policy, adapter, processors and "
    "batch as LeRobot makes them.",
    when="spatial-forcing doctor, while LeRobot's trainer runs up to its first step.",
    versions=BOTH,
    upstream="The trainer's preparation as a function of its own.",
    without="The doctor cannot look.",
)
ERRORS = Patch(
    name="errors at the end",
    target="sys.excepthook",
    what="In LeRobot's commands an error of ours is one message, the last thing on the screen, without a "
    "traceback; other errors, other programs and python -X dev are as before.",
    why="LeRobot's commands have no place for what a plug-in raises; a page of traceback hides the message.",
    when="A policy with forcing is made; an error of ours is raised by a configuration or an environment.",
    versions=BOTH,
    upstream="A base class of errors whose message its commands print alone.",
    without="Our errors end with a traceback.",
)
PATCHES = (CHUNKS, TRANSFORMS, CROPS, FLAGS, TRAINER, ERRORS)


def read_chunks_without_images() -> None:
    """Patch: data sets read action chunks without decoding the images beside them, in workers too.

    Readers that are of another class than LeRobot's own are left alone. Where LeRobot has changed it warns,
    and leaves them all alone.
    """
    if is_on(CHUNKS):
        return
    from lerobot.datasets.dataset_reader import DatasetReader

    from spatial_forcing.chunks import ChunkReader
    from spatial_forcing.patches import readers

    try:
        readers.check_chunks(CHUNKS)
    except LeRobotChanged as changed:
        logging.getLogger(__name__).warning("%s", changed)
        return
    readers.become(CHUNKS, ChunkReader, DatasetReader)


def track_image_transforms() -> None:
    """Patch: frames carry the affine of image transforms; streaming data sets with transforms are refused.

    Raises:
        LeRobotChanged: LeRobot transforms images in another way.
    """
    if is_on(TRANSFORMS):
        return
    from lerobot.datasets.dataset_reader import DatasetReader

    from spatial_forcing.chunks import ChunkReader
    from spatial_forcing.patches import readers

    readers.check_tracking(TRANSFORMS)
    readers.refuse_streaming(TRANSFORMS)
    readers.become(TRANSFORMS, readers.TrackingReader, DatasetReader, ChunkReader)


def track_groot_crops() -> None:
    """Patch: GR00T's preprocessor records which cameras it packed and how it cropped them.

    Raises:
        LeRobotChanged: the preprocessor has other steps, or they crop with other options.
    """
    if not is_on(CROPS):
        from spatial_forcing.patches import crops

        crops.track(CROPS)


def take_forcing_flags() -> None:
    """Patch: LeRobot accepts forcing flags beside ``--policy.path``.

    Raises:
        LeRobotChanged: LeRobot reads the configuration of a checkpoint in another way.
    """
    if not is_on(FLAGS):
        from spatial_forcing.patches import checkpoint_flags

        checkpoint_flags.take(FLAGS)


@contextmanager
def trainer_with(parts: dict[str, Any]) -> Iterator[Any]:
    """Context with LeRobot's trainer, in which functions of it are replaced by name.

    Raises:
        LeRobotChanged: it has no such functions.
    """
    for name in parts:
        lerobots(TRAINER, "lerobot.scripts.lerobot_train", name)
    lerobots(TRAINER, "lerobot.scripts.lerobot_train", "update_policy", "policy", "batch", "accelerator")
    from lerobot.scripts import lerobot_train

    before = {name: getattr(lerobot_train, name) for name in parts}
    for name, part in parts.items():
        setattr(lerobot_train, name, part)
    try:
        yield lerobot_train
    finally:
        for name, part in before.items():
            setattr(lerobot_train, name, part)


def say_errors_last() -> None:
    """Patch: an error of ours that ends one of LeRobot's commands prints as one last message."""
    guard.say_last()


def for_training(*, stored: bool, names: bool, packed: bool) -> None:
    """Applies the patches that a policy with forcing needs, when the policy is created.

    LeRobot's trainer has made the data set by then and not read it, and makes the preprocessor afterwards.

    Args:
        stored: it is trained toward stored features.
        names: the cameras to align are named.
        packed: its preprocessor packs and crops images.

    Raises:
        LeRobotChanged: one of them cannot be put in place, and training would be wrong without it.
    """
    say_errors_last()
    read_chunks_without_images()
    if stored:
        track_image_transforms()
    if packed and (stored or names):
        track_groot_crops()
