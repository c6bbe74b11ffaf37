"""All that Spatial Forcing has to know of the policy ``mini``. This file imports neither it nor LeRobot."""

from typing import Any

from spatial_forcing import Host, Layout
from spatial_forcing.hosts import PolicyRecord


def mini_host(policy: Any, views: int) -> Host:
    config = policy.config
    layout = Layout(views, config.rows, config.cols)  # images are stretched to the grid
    return Host(
        name="Mini",
        blocks=policy.blocks,
        final_norm=policy.norm,
        width=config.width,
        layout=layout,
        visual=slice(1, 1 + layout.tokens),  # after the state
        entry="before_attention",  # the norm that reads a block's input
    )


RECORD = PolicyRecord(
    type="mini",
    config="MiniConfig",
    module="lerobot_policy_mini.configuration_mini",
    host=mini_host,
    upstream=lambda policy: [policy.patches],
    sequence="[state] [view 1: 3x5] [view 2: 3x5] ...",
    language_model=False,
    tap="block 3 of 4",
    tokens="3 x 5 a view",
    trains="always does",
)
