"""Spatial Forcing on a host of one's own: a small VLA that no record knows, its record, and the check of it.

    python examples/own_host.py

``OwnVLA`` stands for your model: it cuts the images of its cameras into patches, puts the tokens between
two others and runs transformer blocks. All that Spatial Forcing needs to know of it is in ``own_host``:
where the visual tokens are, and how an image lands on them. ``check_host`` finds out whether that is true;
a record with a mistake would train without a word. tests/test_examples.py runs this file.
"""

import torch
from torch import Tensor, nn

from spatial_forcing import Host, Layout, SpatialForcing, check_host, load_teacher

VIEWS, SIDE, PATCH, WIDTH = 2, 64, 16, 64
BEFORE = 2  # tokens in the sequence before the visual ones: the task and the state


class OwnBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, x_BLD: Tensor) -> Tensor:
        normed_BLD = self.norm_in(x_BLD)
        x_BLD = x_BLD + self.attention(normed_BLD, normed_BLD, normed_BLD, need_weights=False)[0]
        return x_BLD + self.mlp(x_BLD)


class OwnVLA(nn.Module):
    """images_BV3HW in [0, 1], task_B, state_BS -> actions_BA. Sequence: task, state, view 1, view 2."""

    def __init__(self) -> None:
        super().__init__()
        self.task, self.state = nn.Embedding(8, WIDTH), nn.Linear(4, WIDTH)
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.blocks = nn.ModuleList(OwnBlock() for _ in range(4))
        self.norm_out, self.actions = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, images_BV3HW: Tensor, task_B: Tensor, state_BS: Tensor) -> Tensor:
        patches_BND = self.patches(images_BV3HW.flatten(0, 1)).flatten(2).mT.reshape(len(task_B), -1, WIDTH)
        x_BLD = torch.cat([self.task(task_B)[:, None], self.state(state_BS)[:, None], patches_BND], dim=1)
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return self.actions(self.norm_out(x_BLD)[:, 0])


def own_host(vla: OwnVLA) -> Host:
    """The record: which blocks, which tokens, which grid."""
    layout = Layout(VIEWS, rows=SIDE // PATCH, cols=SIDE // PATCH)  # images are neither padded nor cropped
    return Host(
        name="OwnVLA",
        blocks=vla.blocks,
        final_norm=vla.norm_out,
        width=WIDTH,
        layout=layout,
        visual=slice(BEFORE, BEFORE + layout.tokens),
        entry="norm_in",  # what reads the input of a block
    )


def main() -> dict[str, float]:
    """Checks the record, then makes one training step; returns the losses."""
    torch.manual_seed(0)
    vla = OwnVLA()
    optimizer = torch.optim.AdamW(vla.parameters(), lr=1e-3)
    images, actions = torch.rand(4, VIEWS, 3, SIDE, SIDE), torch.randn(4, 4)
    task, state = torch.randint(8, (4,)), torch.randn(4, 4)

    report = check_host(own_host(vla.eval()), lambda images: vla(images, task, state), images)
    print(report)
    if not report.ok:
        raise SystemExit(1)

    vla.train()
    sf = SpatialForcing(own_host(vla), teacher=load_teacher("vggt-tiny-sim"), weight=0.5)
    optimizer.add_param_group({"params": sf.parameters()})
    with sf.watch():
        action_loss = (vla(images, task, state) - actions).abs().mean()
    loss = action_loss + sf(images)
    loss.backward()
    optimizer.step()
    sf.detach()
    losses = {"action": action_loss.item(), **{name: value.item() for name, value in sf.logs.items()}}
    print(", ".join(f"{name} {value:.3f}" for name, value in losses.items()))
    return losses


if __name__ == "__main__":
    main()
