"""The files of a projector beside a checkpoint: damaged ones, and tokens that are read otherwise now."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_plugin import forced_config, prepared

from lerobot_policy_spatial_forcing.projector_files import restore_projectors
from spatial_forcing.errors import SpatialForcingError


@pytest.fixture(scope="module")
def policy(dataset, cache):
    return prepared(forced_config(cache=str(cache)), dataset)


@pytest.fixture
def side(policy, tmp_path) -> Path:
    policy.save_pretrained(tmp_path)
    return tmp_path / "spatial_forcing"


def restore(policy, side: Path, **forcing) -> None:
    restore_projectors(policy.forcing, replace(policy.config.forcing, **forcing), side)


def described(side: Path, **changed) -> None:
    """Changes what the description says; ... takes something out."""
    said = json.loads((side / "forcing.json").read_text()) | changed
    said = {name: value for name, value in said.items() if value is not ...}
    (side / "forcing.json").write_text(json.dumps(said))


def cut(side: Path) -> None:
    path = side / "projector.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def tensors(side: Path, **changed: torch.Tensor | None) -> None:
    path = side / "projector.safetensors"
    kept = load_file(path) | {f"projector.{name}": value for name, value in changed.items()}
    save_file({name: value for name, value in kept.items() if value is not None}, path)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut, r"projector\.safetensors cannot be read \("),
        (
            lambda side: tensors(side, **{"fc2.bias": None}),
            r"projector\.safetensors is damaged, .* projector\.fc2\.bias of size \(224,\), found none",
        ),
        (
            lambda side: tensors(side, **{"fc2.bias": torch.zeros(3)}),
            r"projector\.fc2\.bias of size \(224,\), found \(3,\)",
        ),
        (lambda side: tensors(side, fc3=torch.zeros(3)), r"projector\.fc3 of size none, found \(3,\)"),
        (
            lambda side: described(side, teacher_fingerprint=...),
            r"forcing\.json is damaged: teacher_fingerprint says .*; found none",
        ),
        (
            lambda side: described(side, site={"name": "blocks.3"}),
            r"forcing\.json is damaged: site says host",
        ),
        (lambda side: described(side, step="four"), r"forcing\.json is damaged: step .*; found 'four'"),
        (lambda side: described(side, alignments={"a": 1}), "alignments is a list of descriptions"),
        (lambda side: (side / "forcing.json").write_text("{"), r"forcing\.json is damaged"),
    ],
)
def test_damaged_files_are_named_with_what_to_do(policy, side, damage, says):
    before = {name: value.clone() for name, value in policy.forcing.state_dict().items()}
    damage(side)
    advice = rf"Copy the checkpoint again with all of its files; .*, remove {side}\."
    with pytest.raises(SpatialForcingError, match=rf"{side}/.*{says}.*{advice}"):
        restore(policy, side)
    assert all(torch.equal(value, before[name]) for name, value in policy.forcing.state_dict().items())
    shutil.rmtree(side)
    restore(policy, side)


def test_a_projector_of_other_tokens_does_not_continue(policy, side):
    """The host that is read one token late has the same sites."""
    for said, here in ((True, False), (False, True), (..., True)):
        described(side, one_token_late=said)
        says = f"one_token_late: {said is True} there, {here} here"
        with pytest.raises(SpatialForcingError, match=rf"{says}\).*new_projector=true"):
            restore(policy, side, one_token_late=here)
        restore(policy, side, one_token_late=here, new_projector=True)
    for said, here in ((True, True), (False, False), (..., False)):
        described(side, one_token_late=said)
        restore(policy, side, one_token_late=here)
