"""The tokenizer of OpenVLA-OFT: carried by its checkpoints, and missed in one message."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_dataset import make_dataset
from small_openvla import built, change_json, write_released
from small_policies import small_config
from small_training import train

from spatial_forcing.convert.openvla import convert
from spatial_forcing.convert.options import Convert
from spatial_forcing.hosts.openvla_oft import small_options
from spatial_forcing.inspection.look import inspect_path
from spatial_forcing.openvla.tokenizer_openvla_oft import TokenizerError
from spatial_forcing.saved_policy import LoadedPolicy
from spatial_forcing.train import checkpoints

KIND = "openvla_oft"
PREPROCESSOR = "policy_preprocessor.json"


@pytest.fixture
def tokenizer(folder, tmp_path) -> Path:
    return Path(shutil.copytree(small_options(folder)["tokenizer"], tmp_path / "words"))


def tokens(checkpoint: Path) -> list[list[int]]:
    loaded = LoadedPolicy(checkpoint)
    (step,) = (step for step in loaded.preprocess.steps if hasattr(step, "files"))
    return step._tokenize_text(["move the hand"])["input_ids"].tolist()


def test_a_checkpoint_works_from_every_folder_and_without_the_tokenizers(
    folder, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    data = make_dataset(tmp_path / "data", episodes=2, frames=6, size=(40, 60))
    config = small_config(KIND, folder, tokenizer=tokenizer.name)
    at = checkpoints(train(KIND, config, data, tmp_path / "run", steps=2))[2]
    expected = tokens(at)
    moved = Path(shutil.copytree(at, tmp_path / "elsewhere" / "policy"))
    shutil.rmtree(tokenizer)
    monkeypatch.chdir(moved.parent)
    assert tokens(moved) == expected
    assert len({*expected[0]}) == 3
    found = inspect_path(moved)
    assert found.loads, found.text()
    assert found.facts["tokenizer"] == "in the checkpoint, of words"


def test_a_converted_checkpoint_carries_the_tokenizer_there_and_back(tokenizer, tmp_path):
    source = write_released(tmp_path / "released", built())
    shutil.copytree(tokenizer, source, dirs_exist_ok=True)
    convert(Convert(checkpoint=str(source), out=tmp_path / "policy", chunk=2))
    shutil.rmtree(source)
    assert tokens(tmp_path / "policy")
    convert(Convert(checkpoint=str(tmp_path / "policy"), out=tmp_path / "back"))
    for file in tokenizer.iterdir():
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes()


def test_an_earlier_checkpoint_whose_tokenizer_is_gone_does_not_load(tokenizer, tmp_path):
    source = write_released(tmp_path / "released", built())
    convert(Convert(checkpoint=str(source), out=tmp_path / "policy", chunk=2, tokenizer=str(tokenizer)))

    def name_alone(said) -> None:
        (step,) = (one for one in said["steps"] if one["registry_name"] == "openvla_tokenizer")
        step["registry_name"] = "tokenizer_processor"
        del step["state_file"]

    change_json(tmp_path / "policy" / PREPROCESSOR, name_alone)
    assert inspect_path(tmp_path / "policy").loads
    assert inspect_path(tmp_path / "policy").facts["tokenizer"] == str(tokenizer)
    shutil.rmtree(tokenizer)
    found = inspect_path(tmp_path / "policy")
    assert not found.loads
    assert f"no folder {tokenizer}" in found.problems[0]


def test_a_tokenizer_that_is_nowhere_is_said_before_anything_is_built(tmp_path):
    source = write_released(tmp_path / "released", built())
    out = tmp_path / "policy"
    with pytest.raises(TokenizerError, match=r"No tokenizer 'openvla/openvla-7b'.*of convert --tokenizer"):
        convert(Convert(checkpoint=str(source), out=out, chunk=2))
    with pytest.raises(TokenizerError, match=r"expected tokenizer_config\.json, found no such file"):
        convert(Convert(checkpoint=str(source), out=out, chunk=2, tokenizer=str(tmp_path)))
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "tokenizer_config.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"The tokenizer of .*odd cannot be read: "):
        convert(Convert(checkpoint=str(source), out=out, chunk=2, tokenizer=str(odd)))
    assert not out.exists()


def test_transformers_does_not_warn_of_openvlas_configuration(tokenizer, tmp_path, caplog, capfd):
    source = write_released(tmp_path / "released", built())
    shutil.copytree(tokenizer, source, dirs_exist_ok=True)
    caplog.set_level("WARNING")
    convert(Convert(checkpoint=str(source), out=tmp_path / "policy", chunk=2))
    assert tokens(tmp_path / "policy")
    assert "You are using a model of type" not in caplog.text + "".join(capfd.readouterr())


@pytest.mark.system
def test_lerobots_trainer_ends_with_one_message(dataset, tmp_path):
    source = write_released(tmp_path / "released", built())
    flags = [
        "--policy.type=sf_openvla_oft", f"--policy.base_checkpoint={source}", "--policy.device=cpu",
        "--policy.push_to_hub=false", "--dataset.repo_id=local/small", f"--dataset.root={dataset}",
        "--policy.forcing.teacher=untrained-tiny", "--policy.new_head=true",
        f"--output_dir={tmp_path / 'run'}", "--steps=1", "--num_workers=0",
    ]  # fmt: skip
    program = Path(sys.executable).with_name("lerobot-train")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([program, *flags], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode != 0
    said = done.stderr.splitlines()[-1]
    assert said.startswith("spatial-forcing: No tokenizer 'openvla/openvla-7b'")
    assert "--policy.tokenizer=<folder>" in said
    assert "TokenizerError" not in done.stderr  # no traceback of it
