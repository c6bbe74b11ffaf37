"""Durations as people read them."""

import pytest

from spatial_forcing.console import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (4.24, "4.2 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (125, "2 min 05 s"),
        (599.4, "9 min 59 s"),
        (725, "12 min"),
        (3723, "1 h 02 min"),
        (3599.7, "1 h 00 min"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
