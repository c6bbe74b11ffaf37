"""Checkpoints of OpenVLA: every released layout is read and written back exactly."""

import json
from dataclasses import replace

import pytest
import torch
from small_openvla import BOUNDS, HEAD, INDEX, OFT, PROPRIO, STATISTICS, built, change_json, write_released
from torch import Tensor, nn

from spatial_forcing.errors import UnknownNameError
from spatial_forcing.openvla.checkpoint import load_openvla, save_openvla
from spatial_forcing.openvla.config import OWN_KEY, PLAIN, OpenVLAConfig
from spatial_forcing.openvla.inspect import expected_shapes, inspect_checkpoint
from spatial_forcing.openvla.model import OpenVLA
from spatial_forcing.teachers.checkpoint import WeightsError


def assert_same(found: OpenVLA, expected: OpenVLA) -> None:
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) and ours[n].dtype == theirs[n].dtype for n in theirs)
    assert [p.requires_grad for p in found.parameters()] == [p.requires_grad for p in expected.parameters()]


def predicted(model: OpenVLA) -> Tensor:
    random, c = torch.Generator().manual_seed(1), model.config
    pixels = torch.randn(2, 6 * c.views, 28, 28, generator=random)
    proprio = None if c.proprio_width is None else torch.randn(2, c.proprio_width, generator=random)
    return model.predict(pixels, torch.tensor([[1, 5, 6], [1, 7, 8]]), None, proprio)


# ----------------------------------------------------------------------------------------- released layouts

LAYOUTS = {
    "oft": (OFT, {"chunk": 2}, "OpenVLA-OFT with an L1 head, with proprioception"),
    "no state": (replace(OFT, proprio_width=None), {"chunk": 2}, "OpenVLA-OFT with an L1 head"),
    "plain": (replace(OFT, **PLAIN), {}, "plain OpenVLA"),  # type: ignore[arg-type]
    "discrete": (
        replace(OFT, regression=False, proprio_width=None),
        {"chunk": 2, "parallel": True},
        "OpenVLA-OFT with discrete tokens",
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_released_layout_is_read_and_written_back(name, tmp_path):
    config, wanted, words = LAYOUTS[name]
    model = built(config)
    folder = write_released(tmp_path / "released", model)
    record = inspect_checkpoint(folder, **wanted)
    assert (record.variant, record.problems, len(record.shards)) == (words, (), 3)
    assert record.keys == ("libero_goal_no_noops",)
    assert record.statistics == "dataset_statistics.json"
    assert "loads              yes" in record.text()
    loaded = load_openvla(folder, **wanted)
    assert_same(loaded, model)
    assert loaded.config == config
    assert torch.equal(predicted(loaded), predicted(model))
    again = load_openvla(save_openvla(loaded, tmp_path / "ours", shard_bytes=300_000))  # needs no argument
    assert_same(again, model)
    assert again.config == config
    files = {path.name for path in (tmp_path / "ours").iterdir()}
    assert {"config.json", INDEX, "dataset_statistics.json"} <= files
    assert ("action_head--latest_checkpoint.pt" in files) == config.regression
    own, theirs = (json.loads((f / INDEX).read_text())["weight_map"] for f in (tmp_path / "ours", folder))
    assert own.keys() == theirs.keys()


def test_what_no_file_says_is_that_of_the_libero_recipe_and_is_told(tmp_path):
    folder = write_released(tmp_path, built(replace(OFT, chunk=8)))
    record = inspect_checkpoint(folder)
    assert record.config == replace(OFT, chunk=8)
    assert any("Assumed 2 views and 8 actions per chunk" in note for note in record.notes)
    assert inspect_checkpoint(folder, views=3, chunk=5).config == replace(OFT, views=3, chunk=5)


def test_parts_keep_their_dtypes_unless_one_is_named(tmp_path):
    model = built(dtype=torch.float16)
    model.proprio_projector.float()
    folder = write_released(tmp_path, model)
    assert_same(load_openvla(folder, chunk=2), model)
    assert inspect_checkpoint(folder).dtypes["proprio_projector"] == "float32"
    assert {p.dtype for p in load_openvla(folder, chunk=2, dtype=torch.float64).parameters()} == {
        torch.float64
    }


def test_the_last_step_is_read_and_the_prefix_of_several_processes_removed(tmp_path):
    model = built()
    folder = write_released(tmp_path, model, wrapped=False)
    other = torch.load(folder / HEAD, weights_only=True)
    torch.save({n: t + 1 for n, t in other.items()}, folder / HEAD.replace("150000", "50000"))
    assert_same(load_openvla(folder, chunk=2), model)
    assert inspect_checkpoint(folder).parts["action_head"] == folder / HEAD
    for file in (HEAD, PROPRIO):
        (folder / file).rename(folder / file.replace("150000", "latest"))
    assert_same(load_openvla(folder, chunk=2), model)


def test_statistics_of_the_data_set_win_over_those_of_the_configuration(tmp_path):
    folder = write_released(tmp_path, built())
    change_json(
        folder / "config.json", lambda config: config.update(norm_stats={"bridge": {"action": BOUNDS}})
    )
    assert load_openvla(folder).statistics.keys == ("libero_goal_no_noops",)
    (folder / "dataset_statistics.json").unlink()
    model = load_openvla(folder)
    assert model.statistics.keys == ("bridge",)
    with pytest.raises(UnknownNameError, match=r"'brigde'. Did you mean 'bridge'\? Available: bridge"):
        model.predict_action(torch.zeros(1), torch.zeros(1), key="brigde")


def test_one_file_without_an_index_is_read(tmp_path):
    model = built()
    folder = write_released(tmp_path, model, shards=1)
    (folder / INDEX).unlink()
    (folder / "model-00001-of-00001.safetensors").rename(folder / "model.safetensors")
    assert_same(load_openvla(folder, chunk=2), model)


def test_a_merged_adapter_beside_whole_weights_is_no_obstacle(tmp_path):
    folder = write_released(tmp_path, built())
    (folder / "lora_adapter").mkdir()
    (folder / "lora_adapter" / "adapter_config.json").write_text("{}")
    record = inspect_checkpoint(folder)
    assert record.problems == ()
    assert any("taken to contain it" in note for note in record.notes)


def test_film_is_merged_from_its_file_and_written_back(tmp_path):
    """FiLM's file holds the vision backbone under unmerged adapters, also of the patches' convolution."""
    model = built(replace(OFT, film=True))
    with torch.no_grad():
        for parameter in model.vision_backbone.parameters():
            parameter.normal_(std=0.1)
    folder = save_openvla(model, tmp_path / "ours", step=7)
    assert_same(load_openvla(folder), model)
    file = folder / "vision_backbone--7_checkpoint.pt"
    state = torch.load(file, weights_only=True)
    for name in list(state):
        if "lora_" in name:
            state[name] = torch.randn_like(state[name]) * 0.1
    torch.save(state, file)
    loaded = load_openvla(folder)
    assert inspect_checkpoint(folder).variant.endswith("with FiLM")
    for ours, theirs in (
        ("featurizer.patch_embed.proj", "featurizer.patch_embed.proj"),
        ("fused_featurizer.blocks.1.block.mlp.fc1", "fused_featurizer.blocks.1.block.mlp.fc1"),
    ):
        layer = f"vision_backbone.{theirs}"
        base, a, b = (
            state[f"{layer}.{n}.weight"] for n in ("base_layer", "lora_A.default", "lora_B.default")
        )
        kind = nn.functional.conv2d if base.dim() == 4 else nn.functional.linear
        x = torch.randn(2, *base.shape[1:])
        expected = kind(x, base) + 16 / 32 * kind(kind(x, a), b)  # alpha over rank
        found = kind(x, loaded.vision_backbone.get_parameter(f"{ours}.weight"))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_full_model_is_inspected_without_allocating_it(tmp_path):
    config = OpenVLAConfig(**PLAIN, norm_stats=STATISTICS)  # type: ignore[arg-type]
    shapes, file = expected_shapes(config), "model-00001-of-00001.safetensors"
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    written = json.dumps(header).encode()
    with (tmp_path / file).open("wb") as shard:
        shard.write(len(written).to_bytes(8, "little") + written)
        shard.truncate(8 + len(written) + end)  # 15 GB of holes
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(shapes, file)}))
    (tmp_path / "config.json").write_text(json.dumps(config.released() | {OWN_KEY: {}}))
    record = inspect_checkpoint(tmp_path)
    assert (record.problems, record.parameters) == ((), 7_541_237_184)
    assert set(record.dtypes.values()) == {"bfloat16"}


def test_writing_does_not_mix_two_checkpoints(tmp_path):
    model = built()
    source = write_released(tmp_path / "source", model)
    (source / "tokenizer.json").write_text("{}")
    ours = save_openvla(model, tmp_path / "ours", processor=source)
    assert (ours / "tokenizer.json").is_file()
    with pytest.raises(WeightsError, match="to hold no weights, found"):
        save_openvla(model, ours)
    with pytest.raises(WeightsError, match="Expected a tokenizer"):
        save_openvla(model, tmp_path / "other", processor=tmp_path)
    model.projector.fc1.base_layer = nn.Linear(2, 2)  # as peft does
    with pytest.raises(
        WeightsError, match=r"Merge the LoRA adapters before writing.*projector\.fc1\.base_layer"
    ):
        save_openvla(model, tmp_path / "wrapped")
