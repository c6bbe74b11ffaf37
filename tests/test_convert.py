"""OpenVLA-OFT checkpoints converted between the released layout and LeRobot's: same actions, same tensors."""

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from small_dataset import make_dataset
from small_openvla import OFT, STATISTICS, built, change_json, write_released
from small_policies import small_config
from small_training import train

from spatial_forcing.convert.openvla import ConversionError, convert
from spatial_forcing.convert.options import Convert
from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.hosts.openvla_oft import small_options
from spatial_forcing.openvla.checkpoint import load_openvla
from spatial_forcing.openvla.config import PLAIN
from spatial_forcing.saved_policy import LoadedPolicy, PolicyError, SavedPolicy
from spatial_forcing.train import checkpoints

KEY = "libero_goal_no_noops"
CAMERAS = ("observation.images.image", "observation.images.image2")


@pytest.fixture(scope="module")
def tokenizer(folder) -> str:
    return small_options(folder)["tokenizer"]


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    return write_released(tmp_path_factory.mktemp("released") / "oft", built())


def converted(source: Path, out: Path, tokenizer: str | None, **options) -> Path:
    given = {"chunk": 2, "tokenizer": tokenizer, "inference_crop": 1.0}
    convert(Convert(checkpoint=str(source), out=out, **given | options))
    return out


def observation(size: int = 28) -> dict:
    draw = torch.Generator().manual_seed(3)
    images = {camera: torch.rand(1, 3, size, size, generator=draw) for camera in CAMERAS}
    return images | {"observation.state": torch.rand(1, 8, generator=draw), "task": ["Put the bowl away"]}


@pytest.mark.parametrize("gripper", ["as_recorded", "openvla"])
def test_a_converted_policy_acts_as_the_released_model(released, tokenizer, tmp_path, gripper):
    loaded = LoadedPolicy(converted(released, tmp_path / "out", tokenizer, gripper=gripper))
    batch = loaded.preprocess(observation())
    chunk_BKA = loaded.policy.predict_action_chunk(batch)
    found = torch.stack([loaded.postprocess(chunk_BKA[:, k]) for k in range(2)], dim=1)
    model = load_openvla(released, chunk=2)
    seen = observation()
    pixels = model.vision_backbone.pixel_values(torch.stack([seen[camera] for camera in CAMERAS], dim=1))
    state = model.statistics.bounds(KEY, "proprio").normalise(seen["observation.state"])
    ids = batch["observation.language.tokens"]
    expected = model.predict_action(pixels, ids, proprio_BP=state, key=KEY)
    assert torch.allclose(found[..., :-1], expected[..., :-1], atol=1e-5)
    if gripper == "as_recorded":
        assert torch.allclose(found[..., -1], expected[..., -1], atol=1e-5)
    else:
        assert torch.equal(found[..., -1], torch.where(expected[..., -1] > 0.5, -1.0, 1.0))


@pytest.mark.parametrize(
    ("stored", "asked", "written", "says"),
    [
        (torch.float32, None, torch.float32, "float32, as the checkpoint's."),
        (torch.bfloat16, None, torch.bfloat16, "bfloat16, as the checkpoint's."),
        (torch.float16, None, torch.float32, "float32; action_head was float16, language_model was float16"),
        (torch.float32, "bfloat16", torch.bfloat16, "bfloat16; action_head was float32"),
    ],
)
def test_weights_keep_their_dtype_unless_another_is_asked_for(
    tokenizer, tmp_path, stored, asked, written, says
):
    source = write_released(tmp_path / "source", built(dtype=stored))
    options = {"chunk": 2, "tokenizer": tokenizer, "dtype": asked}
    lines = convert(Convert(checkpoint=str(source), out=tmp_path / "out", **options))
    assert any(line.startswith(f"Data type of the weights: {says}") for line in lines), lines
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {written}
    expected = built(dtype=stored).state_dict()
    assert all(torch.equal(state[f"model.{n}"], t.to(written)) for n, t in expected.items())
    lines = convert(Convert(checkpoint=str(tmp_path / "out"), out=tmp_path / "back"))
    assert f"Data type of the weights: {str(written).removeprefix('torch.')}." in lines


@pytest.mark.parametrize("variant", ["oft", "plain", "film"])
def test_there_and_back_is_the_same_checkpoint(tokenizer, tmp_path, variant):
    config = {"oft": OFT, "plain": replace(OFT, **PLAIN), "film": replace(OFT, film=True)}[variant]
    source = tmp_path / "source"
    if variant == "film":
        from spatial_forcing.openvla.checkpoint import save_openvla

        save_openvla(built(config), source)
    else:
        write_released(source, built(config))
    options = {"chunk": None} if variant == "plain" else {}
    lerobot = converted(source, tmp_path / "lerobot", tokenizer, **options)
    convert(Convert(checkpoint=str(lerobot), out=tmp_path / "back", key=KEY))
    given = {} if variant == "plain" else {"chunk": 2}
    first, second = load_openvla(source, **given), load_openvla(tmp_path / "back")
    assert first.config.regression == second.config.regression
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name
    again = json.loads((tmp_path / "back" / "dataset_statistics.json").read_text())
    was = STATISTICS[KEY]["action"]
    assert again[KEY]["action"]["mask"] == was["mask"]
    assert again[KEY]["action"]["q01"] == pytest.approx(was["q01"])
    if variant != "plain":
        assert again[KEY]["proprio"]["q99"] == pytest.approx(STATISTICS[KEY]["proprio"]["q99"])


def test_what_the_released_layout_has_no_place_for_comes_back(released, tokenizer, tmp_path):
    names = ("observation.images.top", "observation.images.wrist")
    own = {"gripper": "as_recorded", "inference_crop": 1.0, "cameras": names}
    first = converted(released, tmp_path / "first", tokenizer, **own)
    change_json(first / "config.json", lambda c: c.update(n_action_steps=1, tokenizer_max_length=20))
    lines = convert(Convert(checkpoint=str(first), out=tmp_path / "released"))
    assert any("Warning: its gripper is as recorded" in line for line in lines)
    convert(Convert(checkpoint=str(tmp_path / "released"), out=tmp_path / "again", tokenizer=tokenizer))
    was, now = (json.loads((tmp_path / at / "config.json").read_text()) for at in ("first", "again"))
    kept = ("gripper", "inference_crop", "n_action_steps", "tokenizer_max_length", "input_features")
    assert {name: now[name] for name in kept} == {name: was[name] for name in kept}
    assert list(now["input_features"])[:2] == list(names)
    asked = {"tokenizer": tokenizer, "gripper": "openvla", "inference_crop": 0.9}
    convert(Convert(checkpoint=str(tmp_path / "released"), out=tmp_path / "asked", **asked))
    now = json.loads((tmp_path / "asked" / "config.json").read_text())
    assert (now["gripper"], now["inference_crop"]) == ("openvla", 0.9)


def test_nobody_is_warned_of_openvlas_own_gripper(released, tokenizer, tmp_path):
    first = converted(released, tmp_path / "first", tokenizer)
    lines = convert(Convert(checkpoint=str(first), out=tmp_path / "released"))
    assert not any("gripper" in line for line in lines)


def test_an_adapter_is_merged_on_the_way(folder, tokenizer, tmp_path):
    from lerobot.configs.default import PeftConfig

    base = write_released(tmp_path / "plain", built(replace(OFT, **PLAIN)))
    data = make_dataset(tmp_path / "data", episodes=2, frames=7, size=(40, 60))
    config = small_config("openvla_oft", folder, architecture={}, base_checkpoint=str(base))
    run = train("openvla_oft", config, data, tmp_path / "run", peft=PeftConfig(target_modules=None, r=4))
    at = checkpoints(run)[4]
    lines = convert(Convert(checkpoint=str(run), out=tmp_path / "back"))  # its last one
    assert lines[0] == f"Read {at}."
    assert "its adapter merged" in lines[1]
    model, loaded = load_openvla(tmp_path / "back"), LoadedPolicy(at)
    inside = loaded.policy.merge_and_unload().model
    for name, value in inside.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    q_proj = "language_model.model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(model.state_dict()[q_proj], load_openvla(base).state_dict()[q_proj]), (
        "the adapter has trained"
    )


def test_released_checkpoints_keep_their_tokenizer(released, tokenizer, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(released, source)
    for file in Path(tokenizer).iterdir():
        shutil.copy(file, source / file.name)
    out = converted(source, tmp_path / "out", None)
    assert json.loads((out / "config.json").read_text())["tokenizer"] == str(source)
    convert(Convert(checkpoint=str(out), out=tmp_path / "back"))
    assert (tmp_path / "back" / "tokenizer_config.json").is_file()


def test_the_converted_weights_are_whole_and_nothing_else(released, tokenizer, tmp_path):
    out = converted(released, tmp_path / "out", tokenizer)
    found = load_file(out / "model.safetensors")
    assert found.keys() == {f"model.{name}" for name in built().state_dict()}
    assert json.loads((out / "config.json").read_text())["base_checkpoint"] is None


def test_a_released_checkpoint_is_no_policy_of_lerobots_yet(released):
    says = f"in the released layout.*spatial-forcing convert --checkpoint {released} --out"
    with pytest.raises(PolicyError, match=says):
        SavedPolicy(released)


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Writes fail beyond a size, as they do on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("there", [False, True], ids=["new folder", "folder with a file"])
def test_a_disk_that_is_full_leaves_nothing_in_the_way(released, tokenizer, tmp_path, there):
    policy, back = tmp_path / "out" / "policy", tmp_path / "out" / "back"
    if there:
        for folder in (policy, back):
            folder.mkdir(parents=True)
            (folder / "notes.txt").write_text("mine")
    before = sorted((tmp_path / "out").rglob("*"))
    with files_no_larger_than(100_000), pytest.raises(ConversionError, match="nothing is left of it"):
        converted(released, policy, tokenizer)
    assert sorted((tmp_path / "out").rglob("*")) == before
    converted(released, policy, tokenizer)
    assert LoadedPolicy(policy).config.type == "openvla_oft"
    before = sorted((tmp_path / "out").rglob("*"))
    with files_no_larger_than(100_000), pytest.raises(SpatialForcingError, match=r"ould not (be )?writ"):
        convert(Convert(checkpoint=str(policy), out=back))
    assert sorted((tmp_path / "out").rglob("*")) == before
    convert(Convert(checkpoint=str(policy), out=back))
    assert load_openvla(back).config.chunk == 2


def test_the_space_is_looked_at_first(released, tokenizer, tmp_path, monkeypatch):
    policy = converted(released, tmp_path / "policy", tokenizer)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    for source in (released, policy):
        with pytest.raises(ConversionError, match=r"needs about .* MiB; 1000 B are free"):
            converted(source, tmp_path / "out", tokenizer)
    assert not (tmp_path / "out").exists()


# ---- bad input ---------------------------------------------------------------------------------------------


def refused(error: type[Exception], match: str, source: Path, out: Path, tokenizer: str, **options) -> None:
    with pytest.raises(error, match=match):
        converted(source, out, tokenizer, **options)
    assert not out.exists() or not list(out.glob("*.safetensors"))


def test_what_cannot_be_converted_is_said_before_anything_is_written(released, tokenizer, tmp_path):
    out = tmp_path / "out"
    refused(UnknownNameError, f"un-normalisation key 'libero'.*{KEY}", released, out, tokenizer, key="libero")
    refused(ConversionError, "2 views: name as many --cameras, found 1", released, out, tokenizer,
            cameras=CAMERAS[:1])  # fmt: skip
    refused(ConversionError, "3 views: name as many --cameras, found 2", released, out, tokenizer, views=3)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"type": "act"}')
    refused(ConversionError, "no checkpoint of OpenVLA-OFT.*one of LeRobot's 'act'", other, out, tokenizer)
    refused(PolicyError, "does not exist.*a run of lerobot-train", tmp_path / "nowhere", out, tokenizer)
    odd = Path(shutil.copytree(released, tmp_path / "odd"))
    change_json(odd / "config.json", lambda c: c["spatial_forcing"].update(policy={"gripper": 3}))
    refused(ConversionError, "says that gripper is 3, expected a str", odd, out, tokenizer)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").write_text("{}")
    refused(ConversionError, "holds a checkpoint already", released, tmp_path / "full", tokenizer)
