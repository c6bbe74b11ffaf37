"""How long a teacher takes for an image on this machine, roughly, before its weights are there."""

import time
from functools import cache

import torch

from spatial_forcing.teachers.record import TeacherRecord

# Side of the matrices of the product that is timed, and seconds that it is repeated for.
SIDE = {"cpu": 1024, "cuda": 8192}
SECONDS = 0.1


def seconds_per_image(record: TeacherRecord, device: torch.device | str = "cpu") -> float | None:
    """Lower bound of a teacher's time for one image at its default resolution; None if not known.

    Every parameter takes part in one multiplication and one addition for each patch: 2 P N operations, at
    the rate of a large matrix product here. Attention's own operations are left out, and so is what a
    network loses against such a product.
    """
    if record.parameters is None or record.patch is None:
        return None
    patches = (record.resolution // record.patch) ** 2
    return 2 * record.parameters * patches / matmul_rate(torch.device(device).type)


@cache
def matmul_rate(device: str) -> float:
    """Operations a second of a large matrix product: float32 on a CPU, bfloat16 on a GPU."""
    side = SIDE.get(device, 2048)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    a = torch.ones(side, side, device=device, dtype=dtype)
    _wait_for(a @ a)
    start, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < SECONDS:
        _wait_for(a @ a)
        count += 1
    return count * 2 * side**3 / spent


def _wait_for(x: torch.Tensor) -> None:
    x[0, 0].item()
