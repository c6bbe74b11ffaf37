"""The folder of a comparison: of one alone, which may get further seeds and another probe."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from small_comparison import comparison

from spatial_forcing.compare.arm import Arm
from spatial_forcing.compare.command import bytes_to_come
from spatial_forcing.compare.flags import CompareError
from spatial_forcing.compare.folder import RUNS_LOCK, check_taken, comparison_in, seeds_added, take_folder
from spatial_forcing.compare.plan import Comparison, Measures, Run, folder_of
from spatial_forcing.compare.run import evaluation_path
from spatial_forcing.compare.split import Split
from spatial_forcing.locks import FolderBusyError, FolderLock
from spatial_forcing.results import Evaluation


def evaluate_one(out: Path) -> None:
    """Puts the evaluation of one run into a folder: from now on there are results."""
    done = evaluation_path(folder_of(out, comparison().runs()[0]), 10)
    done.parent.mkdir(parents=True)
    Evaluation(step=10, episodes=[]).save(done)


def test_a_folder_is_of_one_comparison(tmp_path):
    out = tmp_path / "out"
    take_folder(out, comparison())
    take_folder(out, comparison())
    assert comparison_in(out) == comparison()
    with pytest.raises(CompareError, match=r"another comparison.*seeds"):
        take_folder(out, comparison(seeds=(5,)))
    assert asdict(comparison_in(out)) == asdict(comparison())
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("")
    with pytest.raises(CompareError, match="not empty"):
        take_folder(tmp_path / "thesis", comparison())
    with pytest.raises(CompareError, match="holds no comparison"):
        comparison_in(tmp_path)


def test_a_comparison_takes_more_seeds_and_says_when_there_were_results(tmp_path):
    take_folder(tmp_path, comparison(seeds=(3,)))
    take_folder(tmp_path, comparison(seeds=(3, 1)))
    assert comparison_in(tmp_path).seeds == (3, 1)
    assert seeds_added(tmp_path) == [], "nobody could have seen anything"
    evaluate_one(tmp_path)
    for seeds in ((3, 1, 7), (3, 1, 7, 8), (3, 1, 7, 8)):
        take_folder(tmp_path, comparison(seeds=seeds))
        assert comparison_in(tmp_path).seeds == seeds
    assert seeds_added(tmp_path) == [7, 8]
    log = folder_of(tmp_path, comparison(seeds=(8,)).runs()[0]) / "log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("")
    for other in (
        comparison(seeds=(3, 1)),  # its tests would leave a run out
        comparison(seeds=(1, 3, 7, 8, 9)),  # the first seed is the one that is probed
        replace(comparison(seeds=(3, 1, 7, 8, 9)), steps=2000),
    ):
        with pytest.raises(CompareError, match=r"already holds another comparison .*seeds: \[3, 1, 7, 8\]"):
            take_folder(tmp_path, other)
        with pytest.raises(CompareError, match="already holds another comparison"):
            check_taken(tmp_path, other)
    assert comparison_in(tmp_path).seeds == (3, 1, 7, 8)


def test_seeds_that_were_not_meant_are_taken_back_until_a_run_of_them_begins(tmp_path):
    take_folder(tmp_path, comparison(seeds=(0, 1)))
    check_taken(tmp_path, comparison(seeds=(0, 1, 20)))
    assert comparison_in(tmp_path).seeds == (0, 1), "a check writes nothing"
    evaluate_one(tmp_path)
    take_folder(tmp_path, comparison(seeds=(0, 1, 20)))
    assert seeds_added(tmp_path) == [20]
    take_folder(tmp_path, comparison(seeds=(0, 1)))
    assert comparison_in(tmp_path).seeds == (0, 1)
    assert seeds_added(tmp_path) == []


def test_further_seeds_and_another_probe_together_and_one_after_the_other(tmp_path):
    def asked(seeds: tuple[int, ...], probe: str) -> Comparison:
        return comparison(seeds=seeds, measures=Measures(probe=probe))

    take_folder(tmp_path, asked((0,), "auto"))
    evaluate_one(tmp_path)
    for seeds, probe in (((0, 1), "none"), ((0, 1), "recorded"), ((0, 1, 2), "recorded")):
        take_folder(tmp_path, asked(seeds, probe))
        assert comparison_in(tmp_path) == asked(seeds, probe)
    assert seeds_added(tmp_path) == [1, 2]
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe" / "probe.json").write_text("{}")
    with pytest.raises(CompareError, match=r"measures\.probe"):
        take_folder(tmp_path, asked((0, 1, 2, 3), "auto"))
    take_folder(tmp_path, asked((0, 1, 2, 3), "recorded"))


def test_no_seeds_are_added_while_runs_go_on(tmp_path):
    take_folder(tmp_path, comparison(seeds=(0,)))
    with FolderLock(tmp_path, RUNS_LOCK), pytest.raises(FolderBusyError):
        take_folder(tmp_path, comparison(seeds=(0, 1)))
    assert comparison_in(tmp_path).seeds == (0,)


def test_room_is_asked_for_the_runs_that_are_to_come(tmp_path):
    first = folder_of(tmp_path, Run(Arm("plain"), 0, 1.0)) / "train" / "checkpoints" / "000010"
    first.mkdir(parents=True)
    (first / "model.safetensors").write_bytes(bytes(1000))
    (first.parent / "last").symlink_to("000010")
    one = Comparison((), (Arm("plain"), Arm("other")), (0, 1, 2), (1.0,), Split((0,), (1,)), steps=8)
    assert bytes_to_come(one, tmp_path) == 2000, "of the other arm nothing is known"
