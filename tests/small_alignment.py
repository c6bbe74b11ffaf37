"""A small policy, a small teacher, and Spatial Forcing between them."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from spatial_forcing import Alignment, SpatialForcing
from spatial_forcing.cache.store import FeatureStore, Source
from spatial_forcing.cache.write import write_features
from spatial_forcing.features import Features
from spatial_forcing.hosts.tiny import TinyVLA

# Of the policy: 2 views of 2 x 2 tokens; of the teacher: 8 channels.
VIEWS, SIDE, WIDTH, CHANNELS = 2, 2, 16, 8


class ConvTeacher(nn.Module):
    """A real, if small, teacher: one convolution with a patch of 7 pixels; every token valid unless told."""

    def __init__(self):
        super().__init__()
        self.width = CHANNELS
        self.conv = nn.Conv2d(3, CHANNELS, 7, 7)
        self.scale = 1.0

    def forward(self, images_BV3HW: Tensor) -> Features:
        maps_BVChw = self.conv(images_BV3HW.flatten(0, 1)).unflatten(0, images_BV3HW.shape[:2])
        tokens_BVhwC = self.scale * maps_BVChw.movedim(2, -1)
        return Features(tokens_BVhwC, torch.ones(tokens_BVhwC.shape[:-1], dtype=torch.bool))


class TwoLayers(ConvTeacher):
    """A teacher with two layers, the second its channels in another order, that notes what it is asked."""

    def __init__(self, layer: int | None = 1):
        super().__init__()
        self.layer, self.asked = layer, list[tuple[int, ...]]()

    def layers_of(self, images_BV3HW: Tensor, layers: tuple[int, ...]) -> dict[int, Features]:
        self.asked.append(layers)
        tokens, valid = ConvTeacher.forward(self, images_BV3HW)
        return {layer: Features(tokens.flip(-1) if layer % 2 else tokens, valid) for layer in layers}

    def forward(self, images_BV3HW: Tensor) -> Features:
        return self.layers_of(images_BV3HW, (self.layer or 0,))[self.layer or 0]


class Setting:
    """A policy, a teacher, an observation, and Spatial Forcing between them."""

    def __init__(self, **options):
        torch.manual_seed(0)
        self.vla = TinyVLA(views=VIEWS, image_size=28, width=WIDTH, depth=4, heads=2, max_words=3, chunk=2)
        self.teacher = ConvTeacher()
        self.sf = SpatialForcing(self.vla.spatial_forcing_host(), self.teacher, **options)
        self.images_BV3HW = torch.rand(3, VIEWS, 3, 28, 28)
        self.inputs = (self.images_BV3HW, torch.randint(1, 512, (3, 3)), torch.randn(3, 4))

    def act(self) -> Tensor:
        """A watched forward; the action loss."""
        with self.sf.watch():
            return self.vla(*self.inputs).square().mean()

    def loss(self, target: Tensor | Features | None = None, **options) -> Tensor:
        self.act()
        return self.sf(self.images_BV3HW if target is None else target, **options)

    def features(self) -> Features:
        with torch.no_grad():
            return self.teacher(self.images_BV3HW)

    def gradients(self, loss: Tensor) -> dict[str, Tensor | None]:
        modules = nn.ModuleDict({"vla": self.vla, "sf": self.sf})
        modules.zero_grad()
        loss.backward()
        return {name: parameter.grad for name, parameter in modules.named_parameters()}


class Several(Setting):
    """The setting of the other tests with a list of alignments."""

    def __init__(self, *alignments: Alignment):
        super().__init__()
        self.sf.detach()
        torch.manual_seed(5)
        self.sf = SpatialForcing(self.vla.spatial_forcing_host(), list(alignments))


def two(teacher: nn.Module, **second) -> list[Alignment]:
    options = {"loss": "relations", "weight": 2.0, "name": "early"} | second
    return [
        Alignment("blocks.3", teacher, "cosine", 0.5, name="late"),
        Alignment(options.pop("site", "blocks.1"), teacher, **options),
    ]


def assert_same(a: dict[str, Tensor | None], b: dict[str, Tensor | None], atol: float = 1e-7) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=atol, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def small_store(root, layer: int | None = 3, layers: int | None = 4) -> FeatureStore:
    """Stored features of 5 frames of 2 views, said to be layer 3 of 4."""
    images = ((28, 28), (28, 42))
    source = Source("untrained-tiny", "abc", "Apache-2.0", "none", ("left", "right"), 5, images)
    source = replace(source, layer=layer, layers=layers)
    frames_F23HW = torch.rand(5, 2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        write_features(root, source, lambda indices: frames_F23HW[indices], ConvTeacher())
    return FeatureStore(root)
