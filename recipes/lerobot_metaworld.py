"""Records demonstrations of Meta-World's scripted expert in LeRobot's own environment, as a LeRobotDataset.

    python recipes/lerobot_metaworld.py --out metaworld-demos --episodes 10

For trying `spatial-forcing compare ... --env.type=metaworld`: the policy is trained on what that environment
shows, one camera of 480 x 480 pixels. It needs LeRobot's extra `metaworld`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from spatial_forcing.files import check_folder


@dataclass
class Args:
    """Options of the recording."""

    out: Path
    """Folder of the data set, which must not exist."""
    task: str = "reach-v3"
    """Meta-World task."""
    episodes: int = 12
    """Demonstrations that solve the task."""
    frames: int = 60
    """At most so many frames per demonstration."""
    seed: int = 0
    """Of the first demonstration."""


def main(args: Args) -> None:
    """Rolls the expert out and writes what the environment showed and what the expert did."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.envs.metaworld import MetaworldEnv

    check_folder(args.out)
    env = MetaworldEnv(task=args.task, obs_type="pixels_agent_pos")
    features = {
        "observation.image": {
            "dtype": "image",
            "shape": (480, 480, 3),
            "names": ["height", "width", "channels"],
        },
        "observation.state": {"dtype": "float32", "shape": (4,), "names": None},
        "action": {"dtype": "float32", "shape": (4,), "names": None},
    }
    dataset = LeRobotDataset.create(
        f"local/{args.out.name}", fps=80, features=features, root=args.out, use_videos=False
    )
    seed = args.seed
    while dataset.meta.total_episodes < args.episodes:
        if demonstrated(env, dataset, seed, args.frames):
            dataset.save_episode()
        else:
            dataset.clear_episode_buffer()
        seed += 1
    dataset.finalize()
    env.close()
    print(args.out)


def demonstrated(env, dataset, seed: int, frames: int) -> bool:
    """Adds the frames of one rollout of the expert; whether it solved the task."""
    seen, _ = env.reset(seed=seed)
    for _ in range(frames):
        # The expert is told all that the simulator knows; the policy sees images and the hand's state.
        known = env._env._get_obs()
        action = np.clip(env.expert_policy.get_action(known), -1, 1).astype(np.float32)
        dataset.add_frame(
            {
                "observation.image": seen["pixels"],
                "observation.state": seen["agent_pos"].astype(np.float32),
                "action": action,
                "task": env.task_description,
            }
        )
        seen, _, terminated, truncated, info = env.step(action)
        if info["is_success"]:
            return True
        if terminated or truncated:
            return False
    return False


if __name__ == "__main__":
    main(tyro.cli(Args))
