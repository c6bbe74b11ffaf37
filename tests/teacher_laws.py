"""Images for teachers, and the law that every teacher with layers obeys."""

from collections.abc import Callable

import torch

from spatial_forcing.teachers import FrozenTeacher


def images(batch: int = 2, views: int = 2, height: int = 112, width: int = 112) -> torch.Tensor:
    return torch.rand(batch, views, 3, height, width, generator=torch.Generator().manual_seed(3))


def assert_one_pass_is_several(
    teacher: FrozenTeacher, load: Callable[..., FrozenTeacher], x: torch.Tensor
) -> None:
    """Every layer of one pass is bit for bit what a teacher loaded for that layer alone says."""
    count = teacher.layers or 1
    asked = (*range(count), -1)
    every = teacher.layers_of(x, asked)
    assert list(every) == list(asked)
    for layer in range(count):
        alone = load(layer=layer)
        assert torch.equal(every[layer].tokens_BVHWC, alone(x).tokens_BVHWC)
        assert torch.equal(teacher.layers_of(x, (layer,))[layer].tokens_BVHWC, every[layer].tokens_BVHWC)
        assert every[layer].valid_BVHW.all()
        assert teacher.fingerprint_of(layer) == alone.fingerprint
    assert torch.equal(every[-1].tokens_BVHWC, every[count - 1].tokens_BVHWC)
    assert torch.equal(every[count - 1].tokens_BVHWC, teacher(x).tokens_BVHWC)
    if count > 1:
        assert not torch.equal(every[0].tokens_BVHWC, every[1].tokens_BVHWC)
        assert teacher.fingerprint_of(0) != teacher.fingerprint
