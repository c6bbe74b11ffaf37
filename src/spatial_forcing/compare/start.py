"""Start checksums of a run: initial weights and first batches, which must be equal in runs compared.

Noted at the first step of training, in ``start.json`` of the run; a run that began otherwise than its
siblings (the same seed and data fraction) stops there, before it costs anything.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from spatial_forcing.compare.flags import CompareError
from spatial_forcing.files import read_json, write_json

NOTE = "start.json"
BATCHES = 3


class Start:
    """Records checksums of a run's weights and batches during the first steps of LeRobot's trainer.

    Args:
        folder: of the run.
        siblings: folders of the runs that must begin alike.
        elsewhere: of those that start from another checkpoint, and see the same batches.
    """

    def __init__(self, folder: Path, siblings: Sequence[Path], elsewhere: Sequence[Path] = ()):
        self.folder, self.siblings, self.elsewhere = folder, siblings, elsewhere
        self.found: dict[str, Any] = {"batches": []}

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Context in which the first batches of LeRobot's trainer are recorded."""
        from lerobot.scripts import lerobot_train

        from spatial_forcing.patches import trainer_with

        update = lerobot_train.update_policy

        def noting(tracker: Any, policy: Any, batch: Any, *args: Any, accelerator: Any, **kwargs: Any) -> Any:
            if accelerator.is_main_process and len(self.found["batches"]) < BATCHES:
                self.note(accelerator.unwrap_model(policy), batch)
            return update(tracker, policy, batch, *args, accelerator=accelerator, **kwargs)

        with trainer_with({"update_policy": noting}):
            yield

    def note(self, policy: Any, batch: dict[str, Any]) -> None:
        """Records a batch's checksum; with the first one, that of the weights.

        Raises:
            CompareError: a sibling began with others.
        """
        self.found.setdefault("weights", checksum_of(policy))
        self.found["batches"].append(batch_checksum(batch))
        if len(self.found["batches"]) == BATCHES:
            write_json(self.folder / NOTE, self.found)
        for sibling in self.siblings:
            check_alike(self.folder, self.found, sibling, ("weights", "batches"))
        for sibling in self.elsewhere:
            check_alike(self.folder, self.found, sibling, ("batches",))


def checksum_of(policy: Any) -> str:
    """SHA-256 of a policy's weights, without what forcing adds to it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(policy.state_dict().items()):
        if "forcing." not in name:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def batch_checksum(batch: dict[str, Any]) -> str:
    """SHA-256 of the tensors of a preprocessed batch that every arm has: frames, images, states, actions."""
    digest = hashlib.sha256()
    for name, value in sorted(batch.items()):
        if isinstance(value, torch.Tensor) and "spatial_forcing" not in name:
            digest.update(name.encode())
            digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def check_alike(folder: Path, found: dict[str, Any], sibling: Path, parts: Sequence[str]) -> None:
    """Raises :class:`CompareError` if a sibling has recorded other weights, or other batches."""
    path = sibling / NOTE
    if not path.is_file():
        return
    other = read_json(path, "Remove it; it is only compared with.", CompareError)
    same = min(len(found["batches"]), len(other["batches"]))
    here, there = ({"weights": of["weights"], "batches": of["batches"][:same]} for of in (found, other))
    for what in parts:
        if here[what] != there[what]:
            raise CompareError(
                f"{folder.name} and {sibling.name} do not begin with the same {what}, and could not be "
                "compared: something that they share (flags, data, versions, the machine) is not the same, "
                "or draws random numbers of its own."
            )
