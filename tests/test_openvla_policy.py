"""OpenVLA-OFT as a LeRobot policy: losses, inputs as published, the checkpoints that it begins with."""

from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lerobot.configs.default import PeftConfig
from small_dataset import make_dataset
from small_openvla import OFT, built, features, write_released
from small_policies import small_batch, small_config, small_policy
from small_training import saved, train
from torch import nn

from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.hosts import host_of
from spatial_forcing.hosts.openvla_oft import small_options
from spatial_forcing.openvla.config import PLAIN, SMALL
from spatial_forcing.openvla.schedule import StepDecayConfig
from spatial_forcing.probe.policies import ProbedPolicy, untrained
from spatial_forcing.saved_policy import LoadedPolicy
from spatial_forcing.teachers.checkpoint import WeightsError

KIND = "openvla_oft"


def policy_on(base: Path, folder: Path, **options: Any):
    """A policy that begins with a released checkpoint."""
    from lerobot.policies.factory import get_policy_class

    given = {**small_options(folder), "architecture": {}, "device": "cpu", "push_to_hub": False}
    given |= features() | {"base_checkpoint": str(base), "chunk_size": 2, "n_action_steps": 2} | options
    config = small_config(KIND, folder, **given)  # which registers the type
    return get_policy_class(KIND)(config)


# ---- losses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoding", ["l1", "tokens"])
def test_actions_beyond_the_end_of_an_episode_have_no_loss(folder, decoding):
    policy = small_policy(KIND, folder, decoding=decoding)
    batch = small_batch(policy)
    batch["action_is_pad"][1:, -1] = True
    changed = dict(batch, action=batch["action"].clone())
    changed["action"][1:, -1] = -changed["action"][1:, -1]
    assert policy(batch)[0].item() == pytest.approx(policy(changed)[0].item(), abs=1e-6)
    seen = dict(batch, action=-batch["action"])
    assert policy(seen)[0].item() != pytest.approx(policy(batch)[0].item(), abs=1e-3)


def test_the_loss_is_the_error_of_the_chunk_that_the_policy_predicts(folder):
    policy = small_policy(KIND, folder).eval()
    batch = small_batch(policy)
    with torch.no_grad():
        loss, logs = policy(batch)
        error = (policy.predict_action_chunk(batch) - batch["action"]).abs().mean()
    assert loss.item() == pytest.approx(error.item(), rel=1e-5)
    assert logs == {"action_loss": loss.item()}


@pytest.mark.parametrize("decoding", ["tokens", "autoregressive"])
def test_no_other_action_has_less_loss_than_the_predicted_one(folder, decoding):
    plain = {"chunk_size": 1, "n_action_steps": 1, "use_proprio": False}
    options = plain if decoding == "autoregressive" else {}
    policy = small_policy(KIND, folder, decoding=decoding, **options).eval()
    head, tokens = policy.model.language_model.lm_head, policy.model.tokens
    with torch.no_grad():  # so that the likeliest token is always one of an action
        head.weight[: tokens.vocabulary - tokens.bins] = 0
        head.weight *= 50
    batch = small_batch(policy, 1)
    with torch.no_grad():
        predicted = policy.predict_action_chunk(batch)
        least = policy(dict(batch, action=predicted))[0]
        for change in (0.1, -0.1, 0.7):
            # The last number: those before it decide what is likely after them.
            other = predicted.clone()
            other[0, -1, -1] += change if abs(predicted[0, -1, -1] + change) < 1 else -change
            assert policy(dict(batch, action=other))[0] > least


def test_it_learns_a_sample(folder):
    policy = small_policy(KIND, folder)
    batch = small_batch(policy, 1)
    batch["action"] = batch["action"].clamp(-0.9, 0.9)
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-3)
    for _ in range(120):
        optimizer.zero_grad()
        policy(batch)[0].backward()
        optimizer.step()
    assert (policy.predict_action_chunk(batch) - batch["action"]).abs().mean() < 0.1


def test_a_chunk_is_executed_before_the_next_is_predicted(folder):
    policy = small_policy(KIND, folder)
    batch = small_batch(policy)
    chunk_BKA = policy.predict_action_chunk(batch)
    actions = [policy.select_action(batch) for _ in range(3)]
    for action, expected in zip(actions, (0, 1, 0), strict=True):  # n_action_steps is 2
        assert torch.equal(action, chunk_BKA[:, expected])


def test_a_camera_that_is_missing_from_a_batch_is_said(folder):
    policy = small_policy(KIND, folder)
    batch = small_batch(policy, without=("observation.images.right",))
    with pytest.raises(SpatialForcingError, match=r"all of its cameras.*observation.images.right"):
        policy(batch)


# ---- the checkpoint that a policy begins with --------------------------------------------------------------


def test_a_policy_begins_with_a_released_checkpoint(folder, tmp_path):
    model = built()
    base = write_released(tmp_path / "oft", model)
    policy = policy_on(base, folder)
    for name, value in model.state_dict().items():
        assert torch.equal(policy.model.state_dict()[name], value), name
    assert policy.config.architecture["text_config"]["num_hidden_layers"] == SMALL.llama().num_hidden_layers


def test_head_and_state_are_new_on_plain_openvla(folder, tmp_path):
    model = built(replace(OFT, **PLAIN))
    base = write_released(tmp_path / "plain", model)
    torch.manual_seed(1)
    policy = policy_on(base, folder, **features(4, 5))
    found = policy.model.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(found[name], value), name
    new = {name.partition(".")[0] for name in found.keys() - model.state_dict().keys()}
    assert new == {"action_head", "proprio_projector"}
    assert all(value.isfinite().all() for value in found.values())
    assert found["action_head.model.fc1.weight"].std() > 0
    batch = small_batch_of(policy)
    policy.train()(batch)[0].backward()
    trained = [p.grad is not None for n, p in policy.named_parameters() if "action_head" in n]
    assert all(trained)


def test_the_untrained_copy_of_a_probe_does_not_begin_with_it(folder, tmp_path):
    policy = policy_on(write_released(tmp_path / "oft", built()), folder)
    loaded: Any = SimpleNamespace(policy=policy, config=policy.config)
    name = "model.language_model.model.layers.0.mlp.up_proj.weight"
    plain = untrained(ProbedPolicy("trained", loaded, policy, {}), seed=1).module
    assert not torch.equal(plain.state_dict()[name], policy.state_dict()[name])


def test_films_layers_are_new_on_a_checkpoint_without(folder, tmp_path):
    model = built(replace(OFT, **PLAIN))
    policy = policy_on(write_released(tmp_path / "plain", model), folder, film=True)
    found = policy.model.state_dict()
    qkv = "vision_backbone.featurizer.blocks.0{}.attn.qkv.weight"
    assert torch.equal(found[qkv.format(".block")], model.state_dict()[qkv.format("")])
    assert found["vision_backbone.featurizer.blocks.0.scale.weight"].std() > 0
    policy.train()(small_batch_of(policy))[0].backward()
    assert policy.model.vision_backbone.featurizer.blocks[0].scale.weight.grad.any()


def test_a_head_for_other_actions_is_refused_unless_a_new_one_is_wanted(folder, tmp_path):
    base = write_released(tmp_path / "oft", built())
    with pytest.raises(WeightsError, match=r"other actions, states or sizes.*--policy.new_head=true"):
        policy_on(base, folder, **features(4, 5))
    policy = policy_on(base, folder, new_head=True, **features(4, 5))
    assert policy.model.action_head.model.fc2.out_features == 4


@pytest.mark.parametrize("prefix", ["", "sf_"])
def test_a_random_7b_model_is_refused_before_anything_is_allocated(folder, prefix):
    from lerobot.policies.factory import get_policy_class

    config = small_config(KIND, folder, forcing={} if prefix else None, **features(), architecture={})
    says = (
        r"30 GB in float32\. Give --policy.base_checkpoint=openvla/openvla-7b .*--policy.architecture=.*"
        r"examples/small_openvla.py.*--policy.from_scratch=true"
    )
    with torch.device("meta"), pytest.raises(SpatialForcingError, match=says):
        get_policy_class(f"{prefix}{KIND}")(config)


def test_a_7b_model_from_scratch_is_built_where_asked_for(folder):
    from lerobot.policies.factory import get_policy_class

    config = small_config(KIND, folder, **features(), architecture={}, from_scratch=True)
    with torch.device("meta"):  # at its own size, without its weights
        policy = get_policy_class(KIND)(config)
    assert sum(weight.numel() for weight in policy.parameters()) > 7e9


def test_a_saved_checkpoint_that_says_no_sizes_is_loaded(tmp_path, folder):
    """Its sizes are OpenVLA-7B's, and it is loaded: what it begins with is itself."""
    config = small_config(KIND, folder, **features(), architecture={})
    config.pretrained_path = tmp_path
    config.check_beginning()


def test_a_base_checkpoint_that_is_none(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"config\.json"):
        policy_on(tmp_path / "empty", folder)
    with pytest.raises(WeightsError, match="expected a folder, or a repository"):
        policy_on(tmp_path / "nowhere", folder)


def small_batch_of(policy) -> dict[str, Any]:
    """A batch of the policy's own widths."""
    batch = small_batch(policy, 2)
    width = policy.config.action_feature.shape[0]
    batch["action"] = torch.rand(2, policy.config.chunk_size, width) * 2 - 1
    batch["observation.state"] = torch.rand(2, policy.config.robot_state_feature.shape[0])
    return batch


# ---- training ----------------------------------------------------------------------------------------------


def linear_layers(policy: nn.Module) -> set[str]:
    return {name for name, module in policy.named_modules() if isinstance(module, nn.Linear)}


@pytest.mark.parametrize("film", [False, True], ids=["plain", "film"])
def test_lora_is_on_all_linear_layers_and_what_is_new_trains_whole(folder, tmp_path, film):
    policy = policy_on(write_released(tmp_path / "plain", built(replace(OFT, **PLAIN))), folder, film=film)
    everything = linear_layers(policy)
    wrapped = policy.wrap_with_peft(peft_cli_overrides=asdict(PeftConfig(r=32, lora_alpha=16)))
    adapted = {
        name.removeprefix("base_model.model.")
        for name, module in wrapped.named_modules()
        if hasattr(module, "lora_A")
    }
    new = ("model.action_head", "model.proprio_projector")
    untouched = {
        name
        for name in everything - adapted
        if not name.startswith(new) and not name.endswith((".scale", ".shift"))
    }
    # lm_head has no loss, and SigLIP's pooling no part in anything.
    assert {name for name in untouched if "attn_pool" not in name} == {"model.language_model.lm_head"}
    config = wrapped.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (32, 16, 0.0)
    assert config.init_lora_weights == "gaussian"
    trains = {name for name, p in wrapped.named_parameters() if p.requires_grad}
    assert all(".lora_" in name or "modules_to_save" in name for name in trains)
    whole = {name for name in trains if "modules_to_save" in name}
    assert any("action_head" in name for name in whole)
    assert any(".scale." in name for name in whole) == film


def test_without_a_rank_the_adapter_has_lerobots(folder, tmp_path):
    """LeRobot's trainer hands its own default of ``--peft.r`` on, as if it had been asked for."""
    policy = policy_on(write_released(tmp_path / "plain", built(replace(OFT, **PLAIN))), folder)
    config = policy.wrap_with_peft(peft_cli_overrides=asdict(PeftConfig())).peft_config["default"]
    assert (config.r, config.lora_alpha) == (PeftConfig().r, 16)
    page = " ".join((Path(__file__).parent.parent / "docs" / "hosts" / "openvla.md").read_text().split())
    assert f"`--peft.method_type=LORA` alone is of rank {config.r}" in page
    assert page.count("--peft.r=32 --peft.lora_alpha=16") >= page.count("--policy.type=sf_openvla_oft")


def test_an_adapter_on_a_released_checkpoint_trains_and_is_loaded_again(folder, tmp_path):
    from spatial_forcing.train import checkpoints

    base = write_released(tmp_path / "plain", built(replace(OFT, **PLAIN)))
    data = make_dataset(tmp_path / "data", episodes=2, frames=7, size=(40, 60))
    config = small_config(KIND, folder, forcing={}, architecture={}, base_checkpoint=str(base))
    run = train(KIND, config, data, tmp_path / "run", peft=PeftConfig(target_modules=None, r=4))
    assert all("lora_" in n or "action_head" in n or "proprio" in n for n in saved(run)["host"])
    loaded = LoadedPolicy(checkpoints(run)[4])
    inside = loaded.policy.base_model.model.model
    q_proj = inside.language_model.model.layers[0].self_attn.q_proj
    assert torch.equal(
        q_proj.base_layer.weight,
        built(replace(OFT, **PLAIN)).language_model.model.layers[0].self_attn.q_proj.weight,
    )
    assert q_proj.lora_B["default"].weight.any()
    assert host_of(loaded.policy).name == "OpenVLA-OFT"


def test_fsdp_wraps_blocks_that_are_there(folder):
    policy = small_policy(KIND, folder, film=True)
    assert set(policy._fsdp_wrap_modules) <= {type(module).__name__ for module in policy.modules()}


def test_gradient_checkpointing_changes_no_gradient(folder):
    plain = small_policy(KIND, folder, forcing={})
    thrifty = small_policy(KIND, folder, forcing={}, gradient_checkpointing=True)
    batch = small_batch(plain)
    gradients = []
    for policy in (plain, thrifty):
        policy(batch)[0].backward()
        gradients.append({n: p.grad for n, p in policy.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(gradients[0][n], g, atol=1e-6) for n, g in gradients[1].items())


def test_the_learning_rate_falls_at_one_step():
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = StepDecayConfig(decay_step=3).build(optimizer, 10)
    rates = []
    for _ in range(5):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1, 1, 1, 0.1, 0.1])


# ---- bad options -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoding": "l2"}, "decoding of openvla_oft 'l2'"),
        ({"gripper": "libero"}, "gripper of openvla_oft"),
        ({"dtype": "float16"}, "dtype of openvla_oft"),
        ({"n_action_steps": 9}, "n_action_steps must be 1 to chunk_size"),
        ({"inference_crop": 90}, "fraction of an image's area"),
        ({"decoding": "autoregressive"}, r"expected chunk_size=1.*got chunk_size=4, use_proprio=True"),
    ],
)
def test_bad_options_are_refused_by_name(folder, options, message):
    with pytest.raises((SpatialForcingError, UnknownNameError), match=message):
        small_config(KIND, folder, **options)
