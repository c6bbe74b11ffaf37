"""``spatial-forcing teachers``: what it lists and scores, and what it says of bad input."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from small_dataset import CAMERAS, make_dataset

from spatial_forcing.cli import main
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.structure.command import not_here, score
from spatial_forcing.structure.options import Teachers
from spatial_forcing.structure.rank import sample_of
from spatial_forcing.structure.records import SCORES, TeacherScores
from spatial_forcing.structure.tables import size_of
from spatial_forcing.teachers import RECORDS, load_teacher
from spatial_forcing.teachers.da3 import DA3
from spatial_forcing.teachers.hub import is_here
from spatial_forcing.teachers.mapanything import MapAnything
from spatial_forcing.teachers.speed import seconds_per_image
from spatial_forcing.teachers.vggt import VGGT

HERE = ("pixels", "untrained-tiny", "vggt-tiny-sim", "vggt-tiny-sim-2d", "vggt-tiny-sim-robot")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "small")


def run(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["spatial-forcing", "teachers", *arguments])
    main()


def refused(monkeypatch, capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, *arguments)
    assert stopped.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_without_a_data_set_it_lists_all_with_licences(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    run(monkeypatch)
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.split()}
    for name in RECORDS:
        assert RECORDS[name].licence in lines[name]
    assert "2048" in lines["vggt-1b"]
    assert "not commercial" in lines["vggt-1b"]
    assert "gated" in lines["dinov3-base"]


def test_what_may_not_be_used_commercially_is_hidden(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    run(monkeypatch, "--commercial")
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.split()}
    forbidden = {name for name in RECORDS if RECORDS[name].non_commercial}
    assert {"vggt-1b", "da3-large", "ijepa-huge"} <= forbidden
    assert listed & set(RECORDS) == set(RECORDS) - forbidden


def test_what_does_not_fit_is_marked():
    record = RECORDS["vggt-1b"]
    assert size_of(record, 24 * 2**30) == "909 M"
    assert size_of(record, 6 * 2**30) == "909 M, too large here"
    assert size_of(RECORDS["da3-giant"], 24 * 2**30) == "1.1 B"


def test_time_of_an_image_is_two_operations_for_each_weight_and_patch(monkeypatch):
    monkeypatch.setattr("spatial_forcing.teachers.speed.matmul_rate", lambda device: 1e12)
    for name, patches in (
        ("vggt-1b", 37**2),
        ("da3-small", 36**2),
        ("siglip-base", 14**2),
        ("vjepa2-large", 16**2),
    ):
        record = RECORDS[name]
        assert seconds_per_image(record) == pytest.approx(2 * record.parameters * patches / 1e12)
    assert seconds_per_image(RECORDS["pixels"]) is None
    assert all(record.patch for record in RECORDS.own().values())


def test_a_download_is_announced_with_licence_and_speed(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    caplog.set_level("INFO", "spatial_forcing")
    with pytest.raises(SpatialForcingError, match="could not be fetched"):
        load_teacher("da3-base")
    said = caplog.text
    assert said.index("Apache-2.0") < said.index("An image of 504 px will take it")


def test_records_say_the_width_and_layers_that_teachers_have():
    for name in HERE:
        teacher, record = load_teacher(name), RECORDS[name]
        assert (record.width, record.layers) == (teacher.width, teacher.layers), name
        assert record.parameters in (None, sum(p.numel() for p in teacher.parameters()))
        assert is_here(record)


def test_records_say_how_many_parameters_the_released_models_have():
    """Of our own modules, built without memory; timm's and transformers' are in the tests of theirs."""
    with torch.device("meta"):
        models = {
            "vggt-1b": VGGT(modules=("aggregator",)),
            "mapanything": MapAnything(modules=("trunk",)),
            **{
                name: DA3(RECORDS[name].config, modules=("backbone",))
                for name in RECORDS
                if name.startswith("da3-")
            },
        }
    for name, model in models.items():
        assert RECORDS[name].parameters == sum(p.numel() for p in model.parameters()), name


def test_scores_of_all_that_are_here_and_why_not_the_others(monkeypatch, capsys, dataset, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    out = tmp_path / "scores.json"
    run(monkeypatch, "--dataset", str(dataset), "--frames", "9", "--out", str(out))
    found, said = TeacherScores.read(out), capsys.readouterr().out
    assert {one.teacher for one in found.scores} == set(HERE)
    assert {one.teacher for one in found.left_out} == set(RECORDS) - set(HERE) == set(not_here())
    assert all(name in said for name in RECORDS)
    assert "gated" in next(one.reason for one in found.left_out if one.teacher == "dinov3-base")
    assert (found.frames, found.episodes, found.cameras) == (9, 3, list(CAMERAS))
    assert [one.local_distant.value for one in found.scores] == sorted(
        (one.local_distant.value for one in found.scores), reverse=True
    )
    for one in found.scores:
        for name in SCORES:
            value = getattr(one, name)
            assert value.low <= value.value <= value.high, (one.teacher, name)
        assert one.licence == RECORDS[one.teacher].licence
        tokens = len(CAMERAS) * one.own_grid[0] * one.own_grid[1]
        # A scale of two bytes and one to all components of each token.
        assert 3 * tokens <= one.stored_bytes <= (one.width + 2) * tokens


def test_white_noise_has_no_structure_for_pixels(dataset):
    (pixels,) = score(Teachers(str(dataset), ("pixels",), frames=9), MADE).scores
    assert abs(pixels.local_distant.value) < 0.1
    assert pixels.content.value > 0.9
    assert pixels.layer is None


def test_depth_that_is_in_the_pixels_is_read_from_them(tmp_path):
    """On episodes that the head was not fitted on, and of frames without depth nothing."""
    from small_depth import painted_dataset

    data = painted_dataset(tmp_path / "painted", episodes=24)
    found = score(Teachers(str(data), ("pixels",), frames=96), MADE)
    depth, (pixels,) = found.depth, found.scores
    assert (depth.name, depth.unit) == ("recorded geometry", "m")
    assert (depth.train_episodes, depth.test_episodes) == (18, 6)
    assert pixels.absrel.high < 0.25 * depth.mean.low
    assert depth.mean.low < depth.mean.value < depth.mean.high
    shutil.rmtree(data / "geometry")
    without = score(Teachers(str(data), ("pixels",), frames=96), MADE)
    assert without.depth.mean is without.scores[0].absrel is None
    assert "The data set has no depth" in without.depth.absent
    assert without.scores[0].content == pixels.content


def test_layers_come_from_one_pass_and_are_those_of_a_teacher_loaded_for_them(dataset):
    options = {"dataset": str(dataset), "teachers": ("untrained-tiny",), "frames": 4}
    both = score(Teachers(**options, layers=(0, -1)), MADE).scores
    assert {one.layer for one in both} == {0, 3}
    last = next(one for one in both if one.layer == 3)
    (alone,) = score(Teachers(**options), MADE).scores
    assert alone.plain(exclude={"seconds"}) == last.plain(exclude={"seconds"})


def test_random_numbers_and_results_stay(dataset):
    before = torch.get_rng_state()
    options = Teachers(str(dataset), ("pixels",), frames=4)
    first, second = (score(options, MADE).scores[0].plain(exclude={"seconds"}) for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), before)


def test_frames_are_known_by_their_episode(dataset):
    sample = sample_of(dataset, 6)
    assert sample.indices == (1, 3, 6, 8, 11, 13)
    assert sample.episodes == (0, 0, 1, 1, 2, 2)
    assert sample_of(dataset, 100).indices == tuple(range(15))


MADE = {"command": "test", "commit": None, "versions": {}, "hardware": {}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "DATA", "--teachers", "vgtt-1b"], "Did you mean 'vggt-1b'"),
        (["--dataset", "nowhere"], "does not exist"),
        (["--dataset", "DATA", "--frames", "0"], "two frames"),
        (["--dataset", "DATA", "--grid", "2", "8"], "3 x 3 tokens at least; got 64 frames and 2 x 8"),
        (
            ["--dataset", "DATA", "--grid", "9", "8", "--teachers", "pixels"],
            "pixels has 8 x 8 tokens per view",
        ),
        (["--dataset", "DATA", "--grid", "9", "8"], "No teacher can be scored"),
        (["--dataset", "DATA", "--teachers", "untrained-tiny", "--layers", "7"], "has layers 0 to 3"),
        (["--dataset", "DATA", "--cameras", "front"], "Unknown camera 'front'"),
        (["--dataset", "DATA", "--device", "gpu"], "is not a device"),
        (["--dataset", "DATA", "--depth", "recorded"], "has no depth"),
        (["--dataset", "DATA", "--depth", "vggt-1b"], "--depth is recorded or pseudo:<model>"),
        (["--dataset", "DATA", "--depth", "pseudo:pixels"], "pixels has no depth head"),
        (["--teachers", "pixels", "--frames", "8"], "--teachers, --frames: say of which data set"),
    ],
)
def test_bad_input_is_one_message(monkeypatch, capsys, dataset, tmp_path, arguments, message):
    given = [str(dataset) if a == "DATA" else a for a in arguments]
    out = ["--out", str(tmp_path / "scores.json")] if "--dataset" in given else []
    said = refused(monkeypatch, capsys, *given, *out)
    assert message in said
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_here_are_said_where_they_are_asked_for(monkeypatch, dataset, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SpatialForcingError, match="could not be fetched from the Hub"):
        score(Teachers(str(dataset), ("vggt-1b",)), MADE)
