"""Malformed inputs: each gives one clear message and leaves everything as it was.

Here all cases of the API and those of our own commands that take a moment. Those of ``compare``, which reads
every arm's flags with LeRobot's parser, are system tests. ``python tests/malformed`` (or ``--slow``) also
runs those that start LeRobot's trainer.
"""

import pytest
from malformed.bench import Bench
from malformed.case import Case
from malformed.cases import CASES


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("malformed") / "bench").build()


def test_there_are_many_and_no_two_are_alike():
    names = [case.name for case in CASES]
    assert len(names) >= 200
    assert len(set(names)) == len(names), sorted(name for name in names if names.count(name) > 1)


def marks(case: Case) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] * ("train" in case.of) + [pytest.mark.system] * (case.of == "compare")


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name, marks=marks(case)) for case in CASES])
def test_one_clear_message_and_nothing_changed(bench, case):
    bench.try_case(case)


def test_afterwards_every_byte_is_as_it_was(bench):
    bench.check_whole()
