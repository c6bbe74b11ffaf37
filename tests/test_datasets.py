"""Opening data sets: one set of errors, whoever opens one."""

import pytest
from small_dataset import make_dataset

from spatial_forcing.cache.extract import Extraction, extract
from spatial_forcing.datasets import DatasetError, locate_dataset, open_dataset
from spatial_forcing.rehearsal import dataset_flags
from spatial_forcing.teachers import load_teacher


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "small", episodes=2, frames=4)


def test_a_folder_or_a_name_on_the_hub(dataset, monkeypatch):
    assert locate_dataset(dataset) == ("local/small", dataset)
    assert locate_dataset("lerobot/pusht") == ("lerobot/pusht", None)
    assert dataset_flags(str(dataset)) == ["--dataset.repo_id=local/small", f"--dataset.root={dataset}"]
    assert dataset_flags("lerobot/pusht") == ["--dataset.repo_id=lerobot/pusht"]
    monkeypatch.chdir(dataset)
    assert locate_dataset(".")[0] == "local/small"


def test_frames_and_action_chunks(dataset):
    assert open_dataset(dataset)[5]["action"].shape == (4,)
    chunks = open_dataset(dataset, lambda meta: {"action": [i / meta.fps for i in range(3)]})
    assert chunks[0]["action"].shape == (3, 4)
    assert len(chunks) == 8


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("none", "none does not exist. Give a data set's folder, or its name on the Hub"),
        ("meta", "meta is not a LeRobotDataset: it has no meta/info.json. Give"),
        ("meta/info.json", "info.json is not a LeRobotDataset"),
    ],
)
def test_what_is_no_data_set_is_the_same_error_for_all(dataset, tmp_path, name, says):
    where = dataset / name
    for attempt in (
        open_dataset,
        lambda path: dataset_flags(str(path)),
        lambda path: extract(path, load_teacher("untrained-tiny"), "untrained-tiny", tmp_path, Extraction()),
    ):
        with pytest.raises(DatasetError, match=says):
            attempt(where)


def test_a_damaged_data_set_and_an_unknown_name_are_said_to_be(dataset, tmp_path, monkeypatch):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"cannot be read: .*One of its files is damaged or missing"):
        open_dataset(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        DatasetError, match="nobody/nothing is no folder here, and could not be read from the Hub"
    ):
        open_dataset("nobody/nothing")
