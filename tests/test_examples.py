"""The examples for other trainers run on small models of the same layout, and do what they say."""

import importlib.util
import runpy
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_policies import options_of, small_parts
from torch import nn

from spatial_forcing.hosts.small import WIDTH
from spatial_forcing.teachers import load_teacher

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def teacher():
    return load_teacher("untrained-tiny")


# ---- Hugging Face
# ----------------------------------------------------------------------------------------------------------


def small_paligemma():
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

    config = PaliGemmaConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
            "projection_dim": WIDTH,
        },
        text_config={
            "model_type": "gemma",
            "hidden_size": WIDTH,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "vocab_size": 64,
        },
        projection_dim=WIDTH,
        image_token_index=63,
    )
    torch.manual_seed(0)
    return PaliGemmaForConditionalGeneration(config).train()


def vlm_batch(images_B3HW: torch.Tensor) -> dict:
    ids = torch.cat([torch.full((2, 16), 63), torch.arange(12).view(2, 6)], dim=1)
    kind = torch.cat([torch.zeros(2, 18), torch.ones(2, 4)], dim=1).long()
    labels = torch.where(kind.bool(), ids, -100)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": kind,
        "labels": labels,
        "pixel_values": 2 * images_B3HW - 1,
        "images_B3HW": images_B3HW,
    }


def test_the_hugging_face_loop_aligns_and_leaves_the_model_as_it_was(teacher):
    model = small_paligemma()
    keys = set(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    images = torch.rand(2, 3, 56, 56)
    steps = list(example("hf_loop").train(model, (vlm_batch(images) for _ in range(25)), optimizer, teacher))
    assert steps[-1]["cosine"] > steps[0]["cosine"] + 0.1
    assert steps[-1]["action"] < steps[0]["action"]
    assert all(step["valid_fraction"] == 1 for step in steps)
    assert set(model.state_dict()) == keys
    assert not any(m._forward_pre_hooks for m in model.model.language_model.layers.modules())


# ---- openpi
# ----------------------------------------------------------------------------------------------------------


class AsOpenpi(nn.Module):
    """LeRobot's port of openpi's model, called as openpi calls its own: model(observation, actions).

    Like openpi it moves the images inside the forward: every one is mirrored.
    """

    def __init__(self, core: nn.Module):
        super().__init__()
        self.core = core
        self.paligemma_with_expert = core.paligemma_with_expert

    def forward(self, observation, actions):
        images = [image.flip(-1) for image in observation.images.values()]
        noise, time = torch.zeros_like(actions), torch.full((len(actions),), 0.5)
        return self.core(
            images,
            list(observation.image_masks.values()),
            observation.tokenized_prompt,
            observation.tokenized_prompt_mask,
            observation.state,
            actions,
            noise,
            time,
        )


@pytest.fixture(scope="module")
def openpi_model(tmp_path_factory):
    with small_parts("pi0"):
        from lerobot.policies.pi0.configuration_pi0 import PI0Config
        from lerobot.policies.pi0.modeling_pi0 import PI0Pytorch

        torch.manual_seed(0)
        return AsOpenpi(PI0Pytorch(PI0Config(**options_of("pi0", tmp_path_factory.mktemp("pi0"))))).train()


def observation(images_V_B3HW: list[torch.Tensor], there: list[bool]) -> SimpleNamespace:
    names = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
    batch = len(images_V_B3HW[0])
    return SimpleNamespace(
        images=dict(zip(names, images_V_B3HW, strict=True)),
        image_masks={n: torch.full((batch,), one) for n, one in zip(names, there, strict=True)},
        tokenized_prompt=torch.arange(batch * 4).view(batch, 4),
        tokenized_prompt_mask=torch.ones(batch, 4, dtype=torch.bool),
        state=torch.zeros(batch, 32),
    )


def test_the_openpi_loop_sees_the_augmented_images_and_skips_missing_cameras(openpi_model, teacher):
    loop = example("openpi_loop")
    images = [torch.rand(2, 3, 56, 56) * 2 - 1 for _ in range(3)]
    seen = loop.SeenImages(openpi_model)
    with seen.watch():
        openpi_model(observation(images, [True, True, False]), torch.zeros(2, 4, 32))
    mirrored = torch.stack(images, dim=1).flip(-1) / 2 + 0.5
    assert torch.allclose(seen.images_BV3HW(), mirrored, atol=1e-6)

    optimizer = torch.optim.AdamW(openpi_model.parameters(), lr=3e-3)
    data = ((observation(images, [True, True, False]), torch.zeros(2, 4, 32)) for _ in range(12))
    steps = list(loop.train(openpi_model, data, optimizer, teacher))
    assert steps[-1]["cosine"] > steps[0]["cosine"] + 0.1
    assert all(step["valid_fraction"] == pytest.approx(2 / 3) for step in steps)
    assert all(torch.isfinite(torch.tensor(step["action"])) for step in steps)


# ---- a host of one's own
# ----------------------------------------------------------------------------------------------------------


def test_a_host_of_ones_own_is_checked_and_trains(capsys):
    losses = example("own_host").main()
    assert "32 of 32 blanked cells" in capsys.readouterr().out
    assert losses["valid_fraction"] == 1
    assert 0 < losses["align_loss"] < 2


@pytest.mark.parametrize(("before", "says"), [(1, "1 token too early"), (0, "2 tokens too early")])
def test_a_host_of_ones_own_with_a_mistake_stops(capsys, before, says):
    own = example("own_host")
    own.BEFORE = before
    with pytest.raises(SystemExit):
        own.main()
    assert says in capsys.readouterr().out


# ---- a small OpenVLA
# ----------------------------------------------------------------------------------------------------------


def documented_flags(page: str, base: str) -> list[str]:
    """Flags of the training command in a page of the docs that begins with a folder ``base``."""
    text = (EXAMPLES.parent / "docs" / page).read_text().replace("\\\n", " ")
    command = next(line for line in text.splitlines() if line.startswith("lerobot-train") and base in line)
    return shlex.split(command)[1:]


def test_the_small_openvla_trains_with_the_flags_of_the_docs(dataset, cache, tmp_path, monkeypatch):
    from spatial_forcing.inspection.look import inspect_path
    from spatial_forcing.train import checkpoints
    from spatial_forcing.train_command import TrainCommand

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["small_openvla.py", "--out", "small-openvla"])
    runpy.run_path(str(EXAMPLES / "small_openvla.py"), run_name="__main__")
    found = inspect_path("small-openvla")
    assert found.loads, found.text()
    assert found.what == "plain OpenVLA"
    flags = documented_flags("hosts/openvla.md", "base_checkpoint=small-openvla")
    replaced = {"small-features": str(cache), "small-demos": str(dataset)}
    flags = [f"{name}={replaced.get(value, value)}" for name, _, value in (f.partition("=") for f in flags)]
    TrainCommand().run([*flags, "--steps=2", "--save_freq=2", "--batch_size=2"])
    found = inspect_path(checkpoints(tmp_path / "run-openvla")[2])
    assert found.loads, found.text()
    assert found.what == "LeRobot policy openvla_oft, an adapter"
    assert found.facts["adapter"].startswith("LORA, rank 32")
    assert found.facts["adapts"] == str(tmp_path / "small-openvla")
    assert found.facts["projector"][0].startswith(
        f"at blocks.3 toward the features of untrained-tiny in {cache}"
    )


def test_what_the_options_of_openvla_are_for_is_said_by_the_help():
    from dataclasses import fields

    from draccus.wrappers.docstring import get_attribute_docstring
    from lerobot.configs import PreTrainedConfig

    from spatial_forcing.openvla.configuration_openvla_oft import OpenVLAOFTConfig

    ours = {field.name for field in fields(OpenVLAOFTConfig)} - {f.name for f in fields(PreTrainedConfig)}
    said = {name: get_attribute_docstring(OpenVLAOFTConfig, name).docstring_below for name in ours}
    assert [name for name, text in said.items() if not text] == []
