"""A few demonstrations of LIBERO without a purpose: the arm wanders, the gripper closes and opens."""

from pathlib import Path
from typing import Any

import numpy as np

CAMERAS = ("observation.images.image", "observation.images.image2")
GRIPPER = 6


def libero_config(size: int = 64, **options: Any) -> Any:
    """LeRobot's configuration of two tasks of libero_object, with small images."""
    from lerobot.envs.factory import make_env_config

    return make_env_config(
        "libero",
        task="libero_object",
        task_ids=[0, 3],
        observation_height=size,
        observation_width=size,
        **options,
    )


def wandering(steps: int, seed: int) -> np.ndarray:
    """actions_TA of an arm that wanders about, opens its gripper, closes and opens it."""
    draw = np.random.default_rng(seed)
    actions = np.zeros((steps, 7), dtype=np.float32)
    for start in range(0, steps, 6):
        actions[start : start + 6, :3] = draw.uniform(-0.6, 0.6, 3)
        actions[start : start + 6, GRIPPER] = 1 if start // 12 % 2 else -1
    return actions


def libero_dataset(root: Path, *, episodes: int = 4, steps: int = 36, size: int = 64) -> Path:
    """Records a LeRobotDataset through LeRobot's environment and its processors."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.envs import close_envs, make_env, preprocess_observation

    image = {"dtype": "image", "shape": (size, size, 3), "names": ["height", "width", "channels"]}
    features: dict[str, Any] = {key: dict(image) for key in CAMERAS}
    features |= {
        key: {"dtype": "float32", "shape": (n,), "names": None}
        for key, n in (("observation.state", 8), ("action", 7))
    }
    dataset = LeRobotDataset.create("local/libero", fps=20, features=features, root=root, use_videos=False)
    config = libero_config(size)
    envs, (preprocess, _) = make_env(config, n_envs=1), config.get_env_processors()
    env = envs["libero_object"][0]
    for episode in range(episodes):
        env.envs[0].unwrapped.init_state_id = 10 + episode
        observed, _ = env.reset(seed=[episode])
        for action in wandering(steps, episode):
            seen = preprocess(preprocess_observation(observed))
            frame = {key: (255 * seen[key][0]).round().byte().permute(1, 2, 0).numpy() for key in CAMERAS}
            frame |= {"observation.state": seen["observation.state"][0].numpy(), "action": action}
            dataset.add_frame(frame | {"task": env.envs[0].unwrapped.task_description})
            observed, *_ = env.step(action[None])
        dataset.save_episode()
    close_envs(envs)
    dataset.finalize()
    return root
