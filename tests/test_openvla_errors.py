"""What is wrong with a checkpoint of OpenVLA is said before anything is loaded."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_openvla import HEAD, INDEX, PROPRIO, built, change_json, write_released

from spatial_forcing.openvla.checkpoint import load_openvla, save_openvla
from spatial_forcing.openvla.inspect import inspect_checkpoint
from spatial_forcing.openvla.model import OpenVLA
from spatial_forcing.teachers.checkpoint import WeightsError


def change_shard(folder: Path, change: Callable) -> None:
    path = folder / "model-00002-of-00003.safetensors"
    state = load_file(path)
    before = set(state)
    change(state)
    save_file(state, path)

    def index(found):
        for name in before ^ set(state):
            found["weight_map"].pop(name, None)
        found["weight_map"] |= dict.fromkeys(set(state) - before, path.name)

    change_json(folder / INDEX, index)


def change_part(path: Path, change: Callable) -> None:
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def only_adapter(folder: Path) -> None:
    for path in [*folder.glob("*.safetensors"), folder / INDEX]:
        path.unlink()
    (folder / "adapter_config.json").write_text("{}")


K = "language_model.model.layers.1.self_attn.k_proj.weight"
MALFORMED = {
    "no head": (lambda f: (f / HEAD).unlink(), ["OFT's action head is missing", "head=False"]),
    "no shard": (
        lambda f: (f / "model-00002-of-00003.safetensors").unlink(),
        ["The shard model-00002-of-00003.safetensors is missing"],
    ),
    "cut shard": (
        lambda f: cut(f / "model-00003-of-00003.safetensors"),
        ["model-00003-of-00003.safetensors is cut off or damaged: expected", "Download"],
    ),
    "no shard at all": (
        lambda f: (f / "model-00001-of-00003.safetensors").write_bytes(b"no safetensors"),
        ["model-00001-of-00003.safetensors is cut off, or no safetensors file"],
    ),
    "damaged index": (lambda f: (f / INDEX).write_text("{"), [INDEX, "not readable JSON"]),
    "other index": (lambda f: (f / INDEX).write_text("{}"), ["no 'weight_map'"]),
    "index outside": (
        lambda f: change_json(f / INDEX, lambda i: i["weight_map"].update({K: "../x.safetensors"})),
        ["'../x.safetensors', which is no file of its own folder"],
    ),
    "index of others": (
        lambda f: change_json(
            f / INDEX, lambda i: i["weight_map"].update(extra="model-00001-of-00003.safetensors")
        ),
        ["model-00001-of-00003.safetensors lacks extra"],
    ),
    "no weights": (lambda f: (f / INDEX).unlink(), ["No weights: expected model.safetensors.index.json or"]),
    "foreign key": (
        lambda f: change_shard(f, lambda s: s.update(odd=torch.ones(1))),
        ["1 tensor(s) not known: odd"],
    ),
    "missing key": (lambda f: change_shard(f, lambda s: s.pop(sorted(s)[0])), ["1 tensor(s) missing: "]),
    "another shape": (
        lambda f: change_shard(f, lambda s: s.update({n: t[:1] for n, t in list(s.items())[:1]})),
        ["1 tensor(s) of another shape", "expected (", "found (1"],
    ),
    "integers": (
        lambda f: change_shard(f, lambda s: s.update({n: t.to(torch.int8) for n, t in list(s.items())[:1]})),
        ["must be of one floating-point dtype, found I8"],
    ),
    "mixed": (
        lambda f: change_shard(f, lambda s: s.update({n: t.half() for n, t in list(s.items())[:1]})),
        ["must be of one floating-point dtype, found float"],
    ),
    "adapters in it": (
        lambda f: change_shard(f, lambda s: s.update({"a.q_proj.lora_A.default.weight": torch.ones(1)})),
        ["LoRA adapters are not merged", "merge_and_unload"],
    ),
    "adapter alone": (only_adapter, ["is a LoRA adapter alone, and not merged"]),
    "key of the head": (
        lambda f: change_part(f / HEAD, lambda s: s.update({"module.odd": s.pop("module.model.fc1.bias")})),
        ["1 tensor(s) missing: action_head.model.fc1.bias", "1 tensor(s) not known: action_head.odd"],
    ),
    "width of the state": (
        lambda f: change_part(f / PROPRIO, lambda s: s.update({"module.fc2.weight": torch.ones(2, 2)})),
        ["proprio_projector.fc2.weight (expected (32, 32), found (2, 2))"],
    ),
    "no tensors": (
        lambda f: torch.save({"model.fc1.bias": Path("x")}, f / HEAD),
        [HEAD, "not a PyTorch file of plain tensors"],
    ),
    "no dictionary": (lambda f: torch.save([torch.ones(1)], f / HEAD), [HEAD, "flat state dict"]),
    "no pickle": (lambda f: (f / HEAD).write_bytes(b"none"), [HEAD, "not one of torch.save"]),
    "cut part": (lambda f: cut(f / PROPRIO), [PROPRIO, "not a PyTorch file of plain tensors"]),
    "another step": (
        lambda f: (f / HEAD).rename(f / HEAD.replace("150000", "50000")),
        ["one training step, found action_head of 50000, proprio_projector of 150000"],
    ),
    "diffusion": (
        lambda f: torch.save(
            {"fc1.bias": torch.ones(1)}, f / HEAD.replace("action_head", "noisy_action_projector")
        ),
        ["OpenVLA-OFT with an L1 head, with a diffusion head", "not built in this package"],
    ),
    "another model": (
        lambda f: change_json(f / "config.json", lambda c: c.update(model_type="llava")),
        ["no checkpoint of OpenVLA (model_type 'llava')", "of another model"],
    ),
    "one tower": (
        lambda f: change_json(f / "config.json", lambda c: c.update(use_fused_vision_backbone=False)),
        ["single vision tower", "not built"],
    ),
    "no towers": (
        lambda f: change_json(f / "config.json", lambda c: c.pop("timm_model_ids")),
        ["no 'timm_model_ids'"],
    ),
    "unknown tower": (
        lambda f: change_json(f / "config.json", lambda c: c.update(timm_model_ids=["vit_x", "vit_y"])),
        ["timm cannot build the vision tower 'vit_x'"],
    ),
    "layers without end": (
        lambda f: change_json(f / "config.json", lambda c: c["text_config"].update(num_hidden_layers=2**70)),
        ["num_hidden_layers must be a whole number from 1 to 1,000"],
    ),
    "impossible width": (
        lambda f: change_json(f / "config.json", lambda c: c["text_config"].update(intermediate_size=-1)),
        ["No model can have the sizes in config.json"],
    ),
    "no configuration": (lambda f: (f / "config.json").unlink(), ["config.json cannot be read"]),
    "statistics": (lambda f: (f / "dataset_statistics.json").write_text("["), ["statistics.json is damaged"]),
}


@pytest.fixture(scope="module")
def model() -> OpenVLA:
    return built()


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_wrong_with_a_checkpoint_is_said(name, model, tmp_path):
    spoil, said = MALFORMED[name]
    write_released(tmp_path, model)
    spoil(tmp_path)
    record = inspect_checkpoint(tmp_path, chunk=2)  # never raises
    assert record.text().endswith("loads              no")
    with pytest.raises(WeightsError) as error:
        record.check()
    for words in said:
        assert words in str(error.value)


def test_what_the_caller_wants_must_be_there(model, tmp_path):
    write_released(tmp_path, model)
    discrete = load_openvla(tmp_path, chunk=2, head=False, proprio=False, parallel=True)
    assert discrete.action_head is None
    assert discrete.proprio_projector is None
    (tmp_path / PROPRIO).unlink()
    assert load_openvla(tmp_path, chunk=2).config.proprio_width is None
    with pytest.raises(WeightsError, match="The projector of the proprioceptive state is missing"):
        load_openvla(tmp_path, proprio=True)
    with pytest.raises(WeightsError, match="The vision backbone with FiLM is missing"):
        load_openvla(tmp_path, film=True)
    with pytest.raises(WeightsError, match="expected regression=False, chunk=1"):
        load_openvla(tmp_path, parallel=False)
    with pytest.raises(WeightsError, match=r"No checkpoint at .*absent"):
        load_openvla(tmp_path / "absent")


def test_a_part_that_our_own_checkpoint_had_is_missed(model, tmp_path):
    folder = save_openvla(model, tmp_path)
    (folder / "proprio_projector--latest_checkpoint.pt").unlink()
    with pytest.raises(WeightsError, match="projector of the proprioceptive state is missing"):
        load_openvla(folder)
    assert load_openvla(folder, proprio=False).proprio_projector is None
