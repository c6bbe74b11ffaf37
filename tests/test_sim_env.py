"""The LeRobot environment: experts succeed, the blind do not, observations match the data."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.sim.camera import Jitter, default_cameras
from spatial_forcing.sim.env import LEAST_REACH, SimEnv, SimEnvConfig
from spatial_forcing.sim.experts import observe
from spatial_forcing.sim.world import REACH_BOX, World

SEEDS = [1_000_000 + i for i in range(25)]
BLIND = {"look_every": 10_000, "size": 64}  # only the first observation is drawn


def play(vector, act, seeds=SEEDS) -> list[dict]:
    """Run one episode in every environment as LeRobot does; `act` maps observations to actions."""
    from lerobot.envs.utils import NEW_ROLLOUT_OPTION

    observation, _ = vector.reset(seed=seeds, options={NEW_ROLLOUT_OPTION: True})
    done = np.zeros(len(seeds), dtype=bool)
    while not done.all():
        observation, _, terminated, truncated, info = vector.step(act(observation))
        done |= terminated | truncated
    records = [env.unwrapped.episodes for env in vector.envs]
    assert all(len(record) == 1 for record in records)
    assert [record[0]["success"] for record in records] == info["is_success"].tolist()
    return [record[0] for record in records]


def vector_of(task: str, n: int = 25, **options):
    from lerobot.envs import make_env

    return make_env(SimEnvConfig(task=task, **options), n_envs=n)[task][0]


@pytest.mark.parametrize(
    ("task", "rate"), [("reach-v3", 1.0), ("button-press-topdown-v3", 0.9), ("drawer-open-v3", 0.9)]
)
def test_the_expert_succeeds_from_evaluation_starts(task, rate):
    vector = vector_of(task, **BLIND)
    records = play(vector, lambda _: np.stack(vector.call("expert_action")))
    assert [record["seed"] for record in records] == SEEDS
    assert np.mean([record["success"] for record in records]) >= rate
    longest = max(record["steps"] for record in records if record["success"])
    assert longest <= 0.95 * vector.call("_max_episode_steps")[0]
    vector.close()


def test_reach_cannot_be_won_blind():
    """Neither by standing still, nor by moving to the middle of all goals."""
    vector, middle = vector_of("reach-v3", 15, **BLIND), REACH_BOX.mean(axis=0)
    still = play(vector, lambda _: np.zeros((15, 4), dtype=np.float32), SEEDS[:15])
    assert not any(record["success"] for record in still)
    assert min(record["closest_distance"] for record in still) >= LEAST_REACH - 0.02
    for env in vector.envs:
        env.unwrapped.episodes.clear()

    def to_the_middle(observation: dict) -> np.ndarray:
        move = np.clip(10 * (middle - observation["agent_pos"][:, :3]), -1, 1)
        return np.c_[move, np.zeros(15)].astype(np.float32)

    blind = play(vector, to_the_middle, SEEDS[:15])
    assert np.mean([record["success"] for record in blind]) <= 0.2
    assert np.mean([record["final_distance"] for record in blind]) > 0.12


def test_an_episode_is_a_function_of_its_seed():
    one, other = SimEnv(), SimEnv()
    first, _ = one.reset(seed=SEEDS[0])
    for _ in range(3):
        one.step(one.expert_action())
    other.reset(seed=SEEDS[1])
    again, _ = other.reset(seed=SEEDS[0])
    np.testing.assert_equal(first, again)
    different, _ = one.reset(seed=SEEDS[1])
    assert not np.array_equal(first["environment_state"], different["environment_state"])
    assert not np.array_equal(first["pixels"]["left"], different["pixels"]["left"])
    follow = [env.reset()[0]["environment_state"] for env in (one, other) if env.reset(seed=7)]
    assert np.array_equal(*follow)  # without a seed: the next one that the last seed leads to


def test_demonstrations_and_evaluations_share_no_start():
    """The same number as a seed means different episodes in the two."""
    from spatial_forcing.sim.experts import DemoSpec, demonstrate

    env, world = SimEnv(**BLIND), World("reach-v3", 64)
    spec = DemoSpec(frames=1, size=64, seed=11)
    demos = {demonstrate(world, spec, episode)["environment_state_T6"].tobytes() for episode in range(20)}
    evaluations = {env.reset(seed=seed)[0]["environment_state"].tobytes() for seed in range(20)}
    assert len(demos) == len(evaluations) == 20
    assert not demos & evaluations


def test_observations_are_those_of_the_data_set():
    """Same state, same cameras, same seed: the frame a demonstration would hold."""
    from lerobot.envs.utils import preprocess_observation

    from spatial_forcing.sim.dataset import features

    env, world = SimEnv(camera="fixed"), World("reach-v3")
    env.reset(seed=0)
    for one in (env.world, world):
        one.reset(8, "random-hand")
    action = world.expert_action()
    world.step(action)
    seen = observe(world, default_cameras())
    observation, *_ = env.step(action)
    batch = preprocess_observation(observation)
    assert set(batch) == {key for key in features(112) if key.startswith("observation.")}
    for v, view in enumerate(("left", "right")):
        image = batch[f"observation.images.{view}"]
        assert torch.equal(image[0], torch.from_numpy(seen["rgb_VHW3"][v]).permute(2, 0, 1) / 255)
    assert torch.equal(batch["observation.state"][0], torch.from_numpy(seen["state_4"]))
    assert torch.equal(
        batch["observation.environment_state"][0], torch.from_numpy(seen["environment_state_6"])
    )


def test_cameras_beyond_are_outside_the_range_of_the_demonstrations():
    env, within = SimEnv(camera="beyond"), SimEnv(camera="episode")
    for seed in SEEDS:
        env.reset(seed=seed)
        within.reset(seed=seed)
        assert np.array_equal(env.world.state, within.world.state), "the episode itself is the same"
        jitter, first = Jitter(), env._pair
        for camera, moved, inside in zip(default_cameras(), first, within._pair, strict=True):
            for name in ("azimuth", "elevation", "distance"):
                half, was = getattr(jitter, name), getattr(camera, name)
                assert half < abs(getattr(moved, name) - was) <= 1.6 * half
                assert abs(getattr(inside, name) - was) <= half
        env.step(np.zeros(4, np.float32))
        assert env._pair is first, "one pose for the episode"


def test_looking_less_often_changes_only_what_is_between_looks():
    seldom, always = SimEnv(look_every=4), SimEnv()
    held, fresh = (env.reset(seed=SEEDS[2])[0] for env in (seldom, always))
    for step in range(1, 9):
        np.testing.assert_equal(held["agent_pos"], fresh["agent_pos"])
        if (step - 1) % 4 == 0:
            np.testing.assert_equal(held["pixels"], fresh["pixels"])
        else:
            assert not np.array_equal(held["pixels"]["left"], fresh["pixels"]["left"])
        action = always.expert_action()
        held, fresh = seldom.step(action)[0], always.step(action)[0]
    seldom.step(action)
    always.step(action)
    assert np.array_equal(seldom.render(), always.render())  # videos are never held


def test_lerobot_evaluates_a_policy_in_it(tmp_path):
    """`eval_policy_all`, from observation keys to videos, with a policy that reads the goal."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.envs import close_envs, make_env, make_env_pre_post_processors
    from lerobot.policies.pretrained import PreTrainedPolicy
    from lerobot.scripts.lerobot_eval import eval_policy_all

    @PreTrainedConfig.register_subclass("test_sim_goal_reader")
    @dataclass
    class Config(PreTrainedConfig):
        observation_delta_indices = action_delta_indices = reward_delta_indices = None

        def get_optimizer_preset(self): ...
        def get_scheduler_preset(self): ...
        def validate_features(self): ...

    class Policy(PreTrainedPolicy):
        config_class, name = Config, "test_sim_goal_reader"

        def reset(self): ...
        def get_optim_params(self): ...
        def forward(self, batch): ...
        def predict_action_chunk(self, batch): ...

        def select_action(self, batch):
            assert batch["task"] == ["move the hand to the ball"] * 3
            assert batch["observation.images.left"].shape == (3, 3, 64, 64)
            error = batch["observation.environment_state"][:, 3:] - batch["observation.state"][:, :3]
            return torch.cat([(10 * error).clip(-1, 1), torch.zeros(3, 1)], dim=1)

    config = SimEnvConfig(task="reach-v3", size=64)
    envs = make_env(config, n_envs=3)
    before, after = make_env_pre_post_processors(config, Config())
    info = eval_policy_all(
        envs, Policy(Config()), before, after, lambda x: x, lambda x: x, n_episodes=3, start_seed=SEEDS[0],
        max_episodes_rendered=1, videos_dir=tmp_path,
    )  # fmt: skip
    records = [env.unwrapped.episodes[0] for env in envs["reach-v3"][0].envs]
    close_envs(envs)
    assert info["overall"]["pc_success"] == 100
    assert [record["seed"] for record in records] == SEEDS[:3]
    assert all(record["success"] and record["final_distance"] <= 0.05 for record in records)
    (video,) = tmp_path.rglob("*.mp4")
    assert video.stat().st_size > 1000


def test_a_time_out_is_a_failure_with_its_distance():
    env = SimEnv(size=64, max_steps=3)
    env.reset(seed=1)
    outcomes = [env.step(np.zeros(4))[2:4] for _ in range(3)]
    assert outcomes == [(False, False), (False, False), (False, True)]
    (record,) = env.episodes
    assert (record["success"], record["steps"], record["seed"]) == (False, 3, 1)
    assert record["closest_distance"] <= record["final_distance"]


def test_lerobot_knows_it_by_name_and_mistakes_are_told():
    from lerobot.envs.configs import EnvConfig

    assert EnvConfig.get_choice_class("sf_metaworld") is SimEnvConfig
    config = SimEnvConfig(task="reach-v3, push-v3")
    assert config.type == "sf_metaworld"
    assert set(config.features_map.values()) >= {"observation.images.left", "observation.state", "action"}
    with pytest.raises(UnknownNameError, match="reach-v3"):
        SimEnvConfig(task="reach").create_envs(1)
    with pytest.raises(SpatialForcingError, match="Name a task"):
        SimEnvConfig(task="").create_envs(1)
    with pytest.raises(UnknownNameError, match="episode"):
        SimEnv(camera="every")
    with pytest.raises(UnknownNameError, match="random-hand"):
        SimEnv(start="middle")
