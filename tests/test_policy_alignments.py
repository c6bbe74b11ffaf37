"""Several alignments through LeRobot's trainer: read from a file or flag, trained, saved, resumed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_plugin import SMALL, TEACHER, SfTinyConfig, interrupted_after, prepared, train
from training_configs import train_config

from lerobot_policy_spatial_forcing.forcing_config import ForcingConfig
from spatial_forcing.doctor import diagnose
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.flags import read_config
from spatial_forcing.rehearsal import first_step
from spatial_forcing.teachers import load_teacher
from spatial_forcing.train import checkpoints, read_metrics

RAMP = "linear:initial=1,final=0,end=4"


@pytest.fixture(scope="module")
def listed(cache, tmp_path_factory) -> Path:
    """A file with two alignments: one toward a cache, one toward the teacher online, with a schedule."""
    path = tmp_path_factory.mktemp("alignments") / "two.yaml"
    path.write_text(
        f"- name: stored\n  cache: {cache}\n  loss_weight: 1e-1\n  standardize: true\n"
        f"- site: blocks.1\n  teacher: {TEACHER}\n  loss: smooth_l1\n  loss_weight: {RAMP}\n"
    )
    return path


def config_of(alignments: Any, **forcing: Any) -> SfTinyConfig:
    return SfTinyConfig(
        **SMALL, forcing=ForcingConfig(alignments=alignments, **{"diagnostics_every": 2} | forcing)
    )


@pytest.fixture(scope="module")
def run(dataset, listed, tmp_path_factory) -> Path:
    return train(config_of(str(listed)), dataset, tmp_path_factory.mktemp("two") / "run")


# ---- training ----------------------------------------------------------------------------------------------


def test_both_are_trained_and_logged(run):
    rows = read_metrics(run)
    assert {"stored/align_loss", "blocks_1/align_loss", "blocks_1/align_weight", "gradient_ratio"} <= set(
        rows[0]
    )
    assert [row["blocks_1/align_weight"] for row in rows] == [1.0, 0.75, 0.5, 0.25]
    for row in rows:
        weighted = 0.1 * row["stored/align_loss"] + row["blocks_1/align_weight"] * row["blocks_1/align_loss"]
        assert row["weighted_align_loss"] == pytest.approx(weighted, abs=1e-4)
        assert row["loss"] == pytest.approx(row["action_loss"] + weighted, abs=1e-4)
    first, last = (
        load_file(checkpoints(run)[step] / "spatial_forcing" / "projector.safetensors") for step in (2, 4)
    )
    assert {name.split(".")[1] for name in first if name.startswith("projectors.")} == {"stored", "blocks_1"}
    assert all((first[n] != last[n]).any() for n in first if n.endswith("fc1.weight"))


def test_the_checkpoint_is_the_hosts_own_with_what_was_aligned_beside_it(run, cache):
    at = checkpoints(run)[4]
    assert json.loads((at / "config.json").read_text())["type"] == "tiny"
    assert not [name for name in load_file(at / "model.safetensors") if "forcing" in name]
    said = json.loads((at / "spatial_forcing" / "forcing.json").read_text())
    assert said["step"] == 4
    stored, online = said["alignments"]
    assert (stored["name"], stored["cache"], stored["loss"]) == ("stored", str(cache), "cosine")
    assert (online["name"], online["teacher"], online["loss_weight"]) == ("blocks_1", TEACHER, RAMP)
    assert [one["site"]["name"] for one in (stored, online)] == ["blocks.3", "blocks.1"]
    # What was in the file is in the configuration that a run is resumed with.
    kept = json.loads((at / "train_config.json").read_text())["policy"]["forcing"]["alignments"]
    assert [entry.get("loss") for entry in kept] == [None, "smooth_l1"]


def test_resume_equals_straight_through(run, dataset, listed, tmp_path):
    interrupted = train(config_of(str(listed)), dataset, tmp_path / "run")
    interrupted_after(interrupted, 2)
    train(config_of(str(listed)), dataset, tmp_path / "run")
    for file in ("model.safetensors", "spatial_forcing/projector.safetensors"):
        a, b = (load_file(checkpoints(one)[4] / file) for one in (interrupted, run))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a), file
    weights = [row["blocks_1/align_weight"] for row in read_metrics(interrupted)]
    assert weights == [1.0, 0.75, 0.5, 0.25]


def test_one_with_a_schedule_resumes_too(dataset, cache, tmp_path):
    def config() -> SfTinyConfig:
        return SfTinyConfig(
            **SMALL, forcing=ForcingConfig(cache=str(cache), loss_weight=RAMP, diagnostics_every=0)
        )

    out = train(config(), dataset, tmp_path / "run")
    straight = read_metrics(out)
    interrupted_after(out, 2)
    train(config(), dataset, out)
    assert [row["align_weight"] for row in read_metrics(out)] == [1.0, 0.75, 0.5, 0.25]
    for a, b in zip(read_metrics(out), straight, strict=True):
        assert (a["align_loss"], a["action_loss"]) == (b["align_loss"], b["action_loss"])


def test_a_teacher_of_two_alignments_is_loaded_and_asked_once(dataset):
    entries = [{"teacher": TEACHER}, {"teacher": TEACHER, "site": "blocks.1", "loss": "relations"}]
    policy = prepared(config_of(entries), dataset).train()
    one, other = policy.feature_sources
    assert one is other
    calls = []
    one.teacher.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    loss, logs = policy.forward(a_batch(dataset))
    loss.backward()
    assert calls == [3]
    assert logs["blocks_1/align_loss"] > 0


def a_batch(dataset: Path) -> dict[str, Any]:
    from small_dataset import CAMERAS

    batch = {key: torch.rand(3, 3, 28, 28) for key in CAMERAS}
    batch |= {"observation.state": torch.randn(3, 4), "task": ["go"] * 3, "index": torch.tensor([0, 1, 2])}
    return batch | {"action": torch.randn(3, 8, 4), "action_is_pad": torch.zeros(3, 8, dtype=torch.bool)}


def test_two_layers_of_a_teacher_are_computed_in_one_pass_and_known_apart(dataset, monkeypatch):
    entries = [{"teacher": TEACHER}, {"teacher": TEACHER, "layer": 1, "name": "early"}]
    policy = prepared(config_of(entries), dataset).train()
    teacher, passes = policy.feature_source.teacher, []
    tokens = teacher.tokens
    monkeypatch.setattr(
        teacher, "tokens", lambda images, layers: passes.append(layers) or tokens(images, layers)
    )
    _, logs = policy.forward(a_batch(dataset))
    assert passes == [(1, 3)]
    assert logs["early/align_loss"] != logs["blocks_3/align_loss"]
    last, early = (part.fingerprint for part in policy.forcing.parts)
    assert last == load_teacher(TEACHER).fingerprint
    assert early == load_teacher(TEACHER, layer=1).fingerprint


# ---- what a projector was trained for ----------------------------------------------------------------------


def on_top_of(at: Path, alignments: list[dict[str, Any]], **forcing: Any) -> SfTinyConfig:
    config = config_of(alignments, **forcing)
    config.pretrained_path = at
    return config


def test_projectors_continue_by_name_and_others_need_a_word(run, dataset, cache):
    at = checkpoints(run)[4]
    saved = load_file(at / "spatial_forcing" / "projector.safetensors")
    stored = {"name": "stored", "cache": str(cache), "standardize": True}
    online = {"site": "blocks.1", "teacher": TEACHER, "loss": "smooth_l1", "loss_weight": RAMP}
    same = prepared(on_top_of(at, [online, stored]), dataset).forcing  # in another order
    for name in ("stored", "blocks_1"):
        for key, value in same.projector_of(name).state_dict().items():
            assert torch.equal(value, saved[f"projectors.{name}.{key}"])
    assert same.step == 4
    another = {"name": "more", "site": "blocks.2", "teacher": TEACHER}
    for entries, says in (
        ([stored, online, another], "more: projector: none there, one at blocks.2 here"),
        ([stored | {"norm": "batch"}, online], "stored: norm: layer there, batch here"),
        ([stored | {"site": "blocks.2"}, online], "stored: site: blocks.3 there, blocks.2 here"),
    ):
        with pytest.raises(SpatialForcingError, match=rf"{says}\).*new_projector=true"):
            prepared(on_top_of(at, entries), dataset)
        new = prepared(on_top_of(at, entries, new_projector=True), dataset).forcing
        kept = new.projector_of("blocks_1").state_dict()
        assert all(torch.equal(value, saved[f"projectors.blocks_1.{key}"]) for key, value in kept.items())
    # One of them alone is the one of its name.
    only = prepared(on_top_of(at, [stored]), dataset).forcing
    assert torch.equal(only.projector.fc1.weight, saved["projectors.stored.fc1.weight"])


def test_one_alignment_becomes_two(dataset, cache, tmp_path):
    config = SfTinyConfig(**SMALL, forcing=ForcingConfig(cache=str(cache), diagnostics_every=0))
    at = checkpoints(train(config, dataset, tmp_path / "run", steps=2))[2]
    saved = load_file(at / "spatial_forcing" / "projector.safetensors")
    entries = [{"cache": str(cache)}, {"cache": str(cache), "site": "blocks.1"}]
    with pytest.raises(SpatialForcingError, match=r"blocks_1: projector: none there, one at blocks\.1 here"):
        prepared(on_top_of(at, entries), dataset)
    forcing = prepared(on_top_of(at, entries, new_projector=True), dataset).forcing
    assert torch.equal(forcing.projectors["blocks_3"].fc1.weight, saved["projector.fc1.weight"])


# ---- what is read ------------------------------------------------------------------------------------------

GOOD = "- site: blocks.1\n  teacher: untrained-tiny\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GOOD + "- sit: blocks.2\n", r"line 3: Unknown key of an alignment 'sit'. Did you mean 'site'"),
        (GOOD + "  loss_weight: [1]\n", r"line 3: loss_weight is a number or text; got \[1\]"),
        (GOOD + "  layer: deep\n", r"line 3: layer is a whole number; got 'deep'"),
        (GOOD + "  layer: true\n", r"line 3: layer is a whole number; got True"),
        (GOOD + "  standardize: 1\n", r"line 3: standardize is true or false; got 1"),
        (GOOD + "  site: blocks.2\n", r"line 3: site is said twice"),
        (GOOD + "  loss_weight: -1\n", r"line 3: .*0 or more, got -1"),
        (GOOD + "  loss_weight: linear:initial=1\n", r"line 3: The schedule .* does not say final, end"),
        (GOOD + "  loss: cosin\n", r"line 3: Unknown loss 'cosin'. Did you mean 'cosine'.*Available: cosine"),
        (GOOD + "  control: shufled\n", r"line 3: Unknown control 'shufled'"),
        (GOOD + "  position_embedding: 5\n", r"line 3: .*0 \(none\) to 1.*got 5"),
        (GOOD + "  depth: 2\n", r"line 3: Unknown key of an alignment 'depth'"),
        (GOOD + "  name: a\n" + GOOD + "  name: a\n", r"line 6: the name a is taken, .*line 3"),
        (GOOD + "- blocks.2\n", r"line 3: an alignment is a mapping"),
        (GOOD + "  loss_weight: 'open\n", r"line 4: not readable as YAML"),
        ("site: blocks.2\n", r"line 1: a list of alignments begins with -"),
        ("[]\n", "lists no alignment"),
        ("", "is empty"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_line(tmp_path, text, says):
    path = tmp_path / "alignments.yaml"
    path.write_text(text)
    with pytest.raises(SpatialForcingError, match=says):
        ForcingConfig(alignments=str(path))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([{"site": "blocks.1"}, {"sit": 2}], r"Alignment 2 of --policy\.forcing\.alignments: Unknown key"),
        ('[{"site": "blocks.1"}, {"loss_weight": "much"}]', r"Alignment 2 .*Unknown schedule .* 'much'"),
        ('[{"site": "blocks.1"', "is not readable JSON"),
        ('{"site": "blocks.1"}', "is a list of alignments; got dict"),
        (["blocks.1"], "Alignment 1 .* is a mapping of options; got 'blocks.1'"),
        ([], "lists no alignment"),
        ("nowhere.yaml", "YAML or JSON file, or a JSON list; nowhere.yaml cannot be read: No such file"),
    ],
)
def test_what_is_wrong_in_a_flag_is_said_with_its_entry(given, says):
    with pytest.raises(SpatialForcingError, match=says):
        ForcingConfig(alignments=given)


def test_flat_flags_beside_a_list_are_refused():
    with pytest.raises(
        SpatialForcingError, match=r"forcing\.cache, forcing\.loss_weight says something of one"
    ):
        ForcingConfig(alignments=[{"site": "blocks.1"}], loss_weight=2.0, cache="features")


@pytest.mark.parametrize("value", [True, False])
def test_standardize_beside_a_list_is_refused_whatever_its_value(value):
    """Beside a list it would say nothing; the entries that read a cache are standardised by default."""
    with pytest.raises(SpatialForcingError, match=r"forcing\.standardize says something of one"):
        ForcingConfig(alignments=[{"cache": "features"}], standardize=value)
    (entry,) = ForcingConfig(alignments=[{"cache": "features"}]).entries()
    assert entry.standardize is True


@pytest.mark.parametrize("written", ["yaml", "json", "flag"])
def test_files_and_flags_say_the_same(tmp_path, dataset, written):
    entries = [
        {"site": "blocks.1", "teacher": TEACHER, "loss_weight": 0.25},
        {"teacher": TEACHER, "loss": "relations"},
    ]
    value = json.dumps(entries)
    if written != "flag":
        path = tmp_path / f"alignments.{written}"
        path.write_text(json.dumps(entries, indent=1))
        value = str(path)
    flags = ["--policy.type=sf_tiny", f"--policy.forcing.alignments={value}", "--dataset.repo_id=local/small"]
    forcing = read_config([*flags, f"--dataset.root={dataset}", "--policy.push_to_hub=false"]).policy.forcing
    one, other = forcing.entries()
    assert (one.site, one.teacher, one.loss_weight, one.loss) == ("blocks.1", TEACHER, 0.25, "cosine")
    assert (other.site, other.loss, other.loss_weight) == (None, "relations", 0.5)


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("loss_weight=linear:initial=0.5,final=0,start=1000,end=3000", None),
        ("loss_weight=2", None),
        ("site=vision.-1", None),
        ("loss_weight=liner:initial=1", "Unknown schedule .* 'liner'"),
        ("loss=cosin", "Unknown loss 'cosin'"),
        ("alignments=nowhere.yaml", "nowhere.yaml cannot be read"),
    ],
)
def test_flags_of_one_alignment(flag, says):
    flags = ["--policy.type=sf_tiny", f"--policy.forcing.{flag}", "--dataset.repo_id=local/small"]
    if says is None:
        name, _, value = flag.partition("=")
        found = getattr(read_config([*flags, "--policy.push_to_hub=false"]).policy.forcing, name)
        assert found == (2.0 if value == "2" else value)
    else:
        with pytest.raises(SpatialForcingError, match=says):
            read_config(flags)


# ---- the doctor --------------------------------------------------------------------------------------------


def test_the_doctor_tells_of_every_alignment(dataset, listed):
    config = config_of(str(listed))
    found = diagnose(
        first_step(
            train_config(config, dataset, Path("nowhere"), steps=2, batch_size=4, seed=3, save_every=2)
        )
    )
    assert not found.wrong
    assert found.facts["tap of stored"] == "after block 3 of 4 (blocks.3)"
    assert found.facts["tap of blocks_1"] == "after block 1 of 4 (blocks.1)"
    assert found.facts["alignment of blocks_1"] == f"loss smooth_l1, weight {RAMP}"
    assert found.facts["valid tokens of stored"] == "100%"
    assert {"teacher of stored", "cosine at start of blocks_1", "perturbation check"} <= set(found.facts)
    assert "blocks.1: " in found.drawing


def test_the_doctor_takes_a_list_for_a_teacher(tmp_path):
    from spatial_forcing.rehearsal import training_flags

    with training_flags(["--policy.forcing.alignments=two.yaml"], dataset="owner/name") as flags:
        assert not [flag for flag in flags if flag.startswith("--policy.forcing.teacher")]


def test_a_site_that_the_policy_does_not_have(dataset):
    for site, says in (
        ("vision.-1", "does not describe its vision encoder"),
        ("blocks.7", "blocks.0 to blocks.4"),
    ):
        with pytest.raises(SpatialForcingError, match=says):
            prepared(config_of([{"site": site, "teacher": TEACHER}]), dataset)
