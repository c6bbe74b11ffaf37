"""Weights from the Hub: what is said without a connection, and of licences."""

import logging

import pytest

from spatial_forcing import teachers
from spatial_forcing.teachers import RECORDS, TeacherUnavailableError, load_teacher
from spatial_forcing.teachers.hub import fetch


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """An empty Hub cache and no way out."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="huggingface_hub is not installed")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_without_a_connection_the_error_says_how_to_give_a_file(offline):
    with pytest.raises(TeacherUnavailableError, match=r'load_teacher\("vggt-1b", weights='):
        load_teacher("vggt-1b")


def test_without_a_connection_any_of_the_files_in_the_cache_will_do(offline, tmp_path):
    """VGGT's repository has two; the first is missing from the cache here."""
    commit, repo = "0" * 40, tmp_path / "hub" / "models--facebook--VGGT-1B"
    stored = repo / "snapshots" / commit / "model.pt"
    for path, text in ((repo / "refs" / "main", commit), (stored, "weights")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    assert fetch(RECORDS["vggt-1b"]) == stored


def test_restricted_licences_are_said_once(offline, monkeypatch):
    teachers._show_licence.cache_clear()
    records: list[logging.LogRecord] = []
    # At the logger itself: others have levels and handlers of their own, which earlier tests may have set.
    monkeypatch.setattr(teachers._log, "handle", records.append)
    monkeypatch.setattr(teachers._log, "isEnabledFor", lambda level: True)
    for _ in range(2):
        with pytest.raises(TeacherUnavailableError):
            load_teacher("vggt-1b")
    (said,) = (one for one in records if "Commercial use is not allowed" in one.getMessage())
    assert said.levelno == logging.WARNING
    assert "CC-BY-NC-4.0" in said.getMessage()


def test_every_record_can_be_shown_once():
    """What is shown is remembered by record."""
    assert len({RECORDS[name] for name in RECORDS}) == len(list(RECORDS))
