"""A comparison of small numbers, of which nothing runs."""

from spatial_forcing.compare.arm import arms_of
from spatial_forcing.compare.plan import Comparison
from spatial_forcing.compare.split import Split

FLAGS = [
    "--policy.type=smolvla",
    "--dataset.repo_id=me/cups",
    "--steps=1000",
    "--policy.forcing.loss_weight=2",
]


def comparison(**options) -> Comparison:
    given = {
        "flags": tuple(FLAGS),
        "arms": tuple(arms_of(["plain", "forced"], None, "vggt-1b")),
        "seeds": (0, 1),
        "fractions": (0.5, 1.0),
        "split": Split((3, 0, 2, 4), (1,)),
        "steps": 1000,
    }
    return Comparison(**given | options)
