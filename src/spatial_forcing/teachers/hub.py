"""Downloads of teacher weights from the Hugging Face Hub, with errors that say what to do instead."""

from pathlib import Path

from spatial_forcing.errors import MissingDependencyError, SpatialForcingError
from spatial_forcing.teachers.record import TeacherRecord


class TeacherUnavailableError(SpatialForcingError):
    """The weights of a teacher cannot be downloaded."""

    def __init__(self, record: TeacherRecord, reason: object):
        gate = f" Accept its terms at {record.terms} and run `hf auth login`." if record.gated else ""
        super().__init__(
            f"The weights of teacher {record.name!r} could not be fetched from the Hub ({record.repo}): "
            f"{str(reason).strip()}{gate} If the files are on this machine, name the file or folder: "
            f'load_teacher("{record.name}", weights="/path/to/weights"); on the command line: '
            "--teacher-checkpoint (of `teachers` the path in place of the name), in training "
            "--policy.forcing.teacher_checkpoint. For a teacher's depth (`points`, `probe`) fetch "
            "them on another machine, and bring the Hub's cache here (HF_HUB_CACHE)."
        )


def fetch(record: TeacherRecord) -> Path:
    """Fetches the first of the record's files that its repository has, from the local cache or the Hub.

    Raises:
        TeacherUnavailableError: offline and not cached, gated, or gone.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RemoteEntryNotFoundError,
        )
    except ImportError as error:
        raise MissingDependencyError("huggingface_hub", "teachers") from error
    reason: Exception | None = None
    connected = True
    for name in record.files:
        try:
            return Path(hf_hub_download(str(record.repo), name, local_files_only=not connected))
        except RemoteEntryNotFoundError as error:  # the repository has no such file: try the next
            reason = error
        except LocalEntryNotFoundError:  # offline, or no connection: another file may still be cached
            connected = False
            reason = ConnectionError(
                "no connection (or HF_HUB_OFFLINE is set), and no copy in the Hub's cache."
            )
        except GatedRepoError as error:
            raise TeacherUnavailableError(record, f"access is restricted, see {record.terms}.") from error
        except (HfHubHTTPError, OSError) as error:
            raise TeacherUnavailableError(record, error) from error
    raise TeacherUnavailableError(record, reason) from reason


def is_here(record: TeacherRecord) -> bool:
    """Whether a teacher can be loaded without a download: it needs no weights from the Hub, or they are in
    the Hub's cache on this machine."""
    if record.repo is None:
        return True
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return False
    files = record.files or ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(record.repo, name), str) for name in files)
