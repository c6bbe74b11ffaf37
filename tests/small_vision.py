"""A small host with a vision encoder of its own, and a target without weights."""

import torch
from torch import Tensor, nn

from spatial_forcing import Features, Host, Layout, VisionEncoder
from spatial_forcing.hosts.tiny import Block

VIEWS, SIDE, WIDTH, INNER = 2, 4, 16, 12


class Seeing(nn.Module):
    """A host with a vision encoder of its own: patches of 4 x 4, merged to 2 x 2 tokens per view."""

    def __init__(self, calls: str = "per view", class_token: bool = False):
        super().__init__()
        torch.manual_seed(3)
        self.calls, self.class_token = calls, class_token
        self.patches = nn.Conv2d(3, INNER, 7, 7)
        self.first = nn.Parameter(torch.randn(1, 1, INNER))
        self.position = nn.Parameter(torch.randn(SIDE * SIDE, INNER))
        self.encoder = nn.ModuleList(Block(INNER, 2) for _ in range(3))
        self.encoder_norm = nn.LayerNorm(INNER)
        self.merge = nn.Linear(4 * INNER, WIDTH)
        self.blocks = nn.ModuleList(Block(WIDTH, 2) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)
        self.seen: list[list[Tensor]] = []

    def encode(self, images_b3HW: Tensor) -> Tensor:
        x = self.patches(images_b3HW).flatten(2).mT + self.position
        if self.class_token:
            x = torch.cat([self.first.expand(len(x), -1, -1), x], dim=1)
        streams = [x]
        for block in self.encoder:
            streams.append(x := block(x))
        self.seen.append(streams)
        x = self.encoder_norm(x)[:, int(self.class_token) :]
        x = x.unflatten(1, (2, 2, 2, 2)).transpose(2, 3).flatten(3).flatten(1, 2)
        return self.merge(x)

    def forward(self, images_BV3HW: Tensor) -> Tensor:
        self.seen = []
        if self.calls == "once":
            tokens = (
                self.encode(images_BV3HW.flatten(0, 1)).unflatten(0, images_BV3HW.shape[:2]).flatten(1, 2)
            )
        else:
            tokens = torch.cat([self.encode(images_b3HW) for images_b3HW in images_BV3HW.unbind(1)], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)[..., 0].mean(1)

    def spatial_forcing_host(self) -> Host:
        vision = VisionEncoder(
            self.encoder,
            self.encoder_norm,
            INNER,
            Layout(VIEWS, SIDE, SIDE),
            visual=slice(1, None) if self.class_token else None,
            calls=self.calls,
            entry="norm1",
            upstream=(self.patches,),
        )
        layout = Layout(VIEWS, 2, 2)
        return Host(
            "Seeing", self.blocks, self.norm, WIDTH, layout, slice(0, None), entry="norm1", vision=vision
        )

    def vision_tokens(self, layer: int) -> Tensor:
        """The encoder's tokens after ``layer`` blocks in the last forward, (B, V * n, D), without hooks."""
        streams = [call[layer][:, int(self.class_token) :] for call in self.seen]
        if self.calls == "once":
            return streams[0].unflatten(0, (-1, VIEWS)).flatten(1, 2)
        return torch.cat(streams, dim=1)


class Colours:
    """A target without weights: the colours of 4 x 4 cells, and the red once more."""

    width = 4

    def __call__(self, images_BV3HW: Tensor) -> Features:
        means_BV3hw = images_BV3HW.unflatten(-1, (4, -1)).unflatten(-3, (4, -1)).mean((-3, -1))
        tokens_BVhwC = torch.cat([means_BV3hw, means_BV3hw[:, :, :1].square()], 2).movedim(2, -1)
        return Features(tokens_BVhwC, torch.ones(tokens_BVhwC.shape[:-1], dtype=torch.bool))


def images(batch: int = 3) -> Tensor:
    return torch.rand(batch, VIEWS, 3, 28, 28)
