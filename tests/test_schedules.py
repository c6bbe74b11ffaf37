"""Laws of the schedules of an alignment's weight: what they give at which step, and how they are written."""

import math

import pytest
from extension import installed
from hypothesis import given
from hypothesis import strategies as st

from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.schedules import SCHEDULES, schedule_of, weight_at
from spatial_forcing.schedules.cosine import Cosine
from spatial_forcing.schedules.linear import Linear

weights, steps = st.floats(0, 10), st.integers(0, 5000)


@pytest.mark.parametrize("kind", [Linear, Cosine])
@given(initial=weights, final=weights, start=steps, length=st.integers(1, 5000), step=st.integers(0, 20_000))
def test_ramps_begin_and_end_where_they_say_and_stay_between(kind, initial, final, start, length, step):
    ramp = kind(initial=initial, final=final, start=start, end=start + length)
    assert ramp(0) == ramp(start) == initial
    assert ramp(start + length) == pytest.approx(final, abs=1e-9)
    assert ramp(10**6) == pytest.approx(final, abs=1e-9)
    low, high = sorted((initial, final))
    assert low - 1e-9 <= ramp(step) <= high + 1e-9
    # It goes one way, and is halfway in the middle.
    assert (ramp(step + 1) - ramp(step)) * (final - initial) >= -1e-9
    if length % 2 == 0:
        assert ramp(start + length // 2) == pytest.approx((initial + final) / 2, abs=1e-9)


def test_a_line_is_straight_and_a_cosine_slow_at_both_ends():
    line, cosine = (kind(initial=1.0, final=0.0, start=0, end=100) for kind in (Linear, Cosine))
    assert line(25) == 0.75
    assert cosine(25) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert cosine(1) > line(1)
    assert cosine(99) < line(99)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5", 0.5),
        ("2", 2.0),
        ("1e-3", 1e-3),
        ("constant:value=0.5", 0.5),
        ("linear:initial=0.5,final=0,start=1000,end=3000", 0.375),
        ("linear: initial = 1, final = 0.5, end = 3000", 0.75),
        ("cosine:initial=1,final=0,end=3000", 0.5),
    ],
)
def test_schedules_as_text(text, expected):
    assert weight_at(schedule_of(text), 1500) == pytest.approx(expected)


def test_numbers_and_functions_are_weights_too():
    assert schedule_of(0.25) == 0.25
    assert weight_at(schedule_of(lambda step: 0.1 * step), 3) == pytest.approx(0.3)
    assert weight_at(schedule_of(Linear(initial=0, final=1, end=4)), 1) == 0.25


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        (
            "linera:initial=1,final=0,end=3",
            r"Unknown schedule \(and no number\) 'linera'. Did you mean 'linear'",
        ),
        ("linear", r"does not say initial, final, end. Write it as linear:initial=<number>,.*start=0"),
        (
            "linear:initial=1,final=0,end=3,until=5",
            r"'until=5' in the schedule .* is not understood. Write it",
        ),
        ("linear:initial=1,initial=2,final=0,end=3", "'initial=2' .* is not understood.*each option once"),
        ("linear:initial=much,final=0,end=3", "'initial=much' .* is not understood"),
        ("linear:initial=-1,final=0,end=3", "finite number, 0 or more, got -1"),
        ("linear:initial=1,final=0,start=5,end=3", "start, .*to a later step end; got 5 to 3"),
        ("linear:initial=1,final=0,end=3.5", "whole number.*got 0 to 3.5"),
        ("nan", "got nan"),
        (-1, "0 or more, got -1"),
        (None, "got None"),
    ],
)
def test_weights_that_cannot_be(weight, says):
    with pytest.raises(SpatialForcingError, match=says):
        schedule_of(weight)


def test_a_schedule_that_gives_no_weight_is_told():
    with pytest.raises(SpatialForcingError, match="0 or more, got nan"):
        weight_at(schedule_of(lambda step: math.nan), 3)


@pytest.fixture
def found_again():
    """Schedules are looked for when the test asks, and again after it."""
    SCHEDULES.refresh()
    yield
    SCHEDULES.refresh()


def test_a_schedule_of_another_package_is_one_file_and_an_entry_point(found_again, tmp_path, monkeypatch):
    source = "def stairs(height, every=10): return lambda step: height * (step // every)\n"
    group = "spatial_forcing.schedules"
    installed(tmp_path, monkeypatch, {"stairs_schedule": source}, group, stairs="stairs_schedule:stairs")
    assert "stairs" in SCHEDULES
    assert weight_at(schedule_of("stairs:height=0.5"), 25) == 1.0
    assert weight_at(schedule_of("stairs:height=0.5,every=5"), 25) == 2.5
    with pytest.raises(SpatialForcingError, match="stairs:height=<number>,every=10"):
        schedule_of("stairs")


def test_a_schedule_of_ours_is_one_file(found_again, tmp_path, monkeypatch):
    import spatial_forcing.schedules as package

    (tmp_path / "switch.py").write_text("SCHEDULE = lambda at: lambda step: float(step >= at)\n")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    assert [weight_at(schedule_of("switch:at=3"), step) for step in (2, 3)] == [0.0, 1.0]
    with pytest.raises(UnknownNameError, match=r"Available: constant, cosine, linear, switch\."):
        schedule_of("swap")
