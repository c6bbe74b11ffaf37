"""Projectors beside checkpoints of LeRobot policies, and adapters of PEFT, are inspected."""

import shutil
from pathlib import Path

import pytest
from small_checkpoints import assert_says, change_tensors, save_processors, save_small
from small_openvla import change_json
from small_policies import small_policy

from spatial_forcing.inspection.look import inspect_path

TARGETS = r".*\.text_model\.layers\..*\.(q|v)_proj"


@pytest.fixture(scope="module")
def smolvla(folder, tmp_path_factory) -> Path:
    return save_small("smolvla", folder, tmp_path_factory.mktemp("smolvla") / "checkpoint")


def test_the_projector_beside_a_checkpoint(folder, tmp_path):
    path = save_small("smolvla", folder, tmp_path / "forced", forcing={"site": "blocks.2"})
    found = inspect_path(path)
    assert found.loads, found.text()
    (projector,) = found.facts["projector"]
    assert projector.startswith("at blocks.2 toward untrained-tiny (fingerprint ")
    (path / "spatial_forcing" / "projector.safetensors").write_bytes(b"cut")
    found = inspect_path(path)
    assert not found.loads
    assert "spatial_forcing/projector.safetensors is cut off" in found.problems[0]
    (path / "spatial_forcing" / "projector.safetensors").unlink()
    found = inspect_path(path)
    assert not found.loads
    assert "spatial_forcing/projector.safetensors is missing" in found.problems[0]


@pytest.fixture(scope="module")
def adapter(smolvla, folder, tmp_path_factory) -> Path:
    from peft import LoraConfig, get_peft_model

    path = tmp_path_factory.mktemp("adapter") / "checkpoint"
    policy = small_policy("smolvla", folder)
    policy.name_or_path, policy.config.use_peft = str(smolvla), True
    model = get_peft_model(policy, LoraConfig(r=4, target_modules=TARGETS))
    model.save_pretrained(path)
    policy.config.save_pretrained(path)
    save_processors(policy.config, path)
    return path


def test_an_adapter(adapter, smolvla):
    found = inspect_path(adapter)
    assert found.loads, found.text()
    assert found.what == "LeRobot policy smolvla, an adapter"
    assert found.facts["adapter"] == f"LORA, rank 4, of {TARGETS}"
    assert found.facts["adapts"] == str(smolvla)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: spoil_adapter(path), "1 missing: .*q_proj.lora_A.weight"),
        (lambda path: (path / "adapter_model.safetensors").unlink(), "expected adapter_model.safetensors"),
        (
            lambda path: change_json(path / "adapter_config.json", lambda c: c.update(r=8)),
            r"of another shape: .*\(expected \(8, 32\), found \(4, 32\)\)",
        ),
        (
            lambda path: change_json(
                path / "adapter_config.json", lambda c: c.update(base_model_name_or_path=None)
            ),
            "does not say which policy it adapts",
        ),
        (
            lambda path: change_json(
                path / "adapter_config.json", lambda c: c.update(base_model_name_or_path="/no/such")
            ),
            "not there: no folder /no/such",
        ),
    ],
)
def test_damaged_adapters(adapter, tmp_path, damage, says):
    path = Path(shutil.copytree(adapter, tmp_path / "copy"))
    damage(path)
    found = inspect_path(path)
    assert not found.loads
    assert_says(found, says)


def spoil_adapter(path: Path) -> None:
    def spoil(state):
        state["odd"] = state.pop(next(name for name in sorted(state) if "lora_A" in name))

    change_tensors(path / "adapter_model.safetensors", spoil)
