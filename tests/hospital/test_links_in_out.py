"""Test that links in a run's folder are not followed: nothing outside of it is written, emptied or removed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from synboost_monai.dicom.limits import Limits
from synboost_monai.hospital.batch import _remove_unlisted, run_dicom
from synboost_monai.hospital.inbox import Inbox
from synboost_monai.hospital.ledger import Ledger
from synboost_monai.hospital.listen import INBOX, RUNS, WORK, run_listen
from synboost_monai.hospital.study import STUDIES
from synboost_monai.processes import hold_folder
from synboost_monai.training import LogToFile


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """Make somebody else's folder, with a file in a folder that looks like a study's."""
    (tmp_path / "precious" / ("0" * 16)).mkdir(parents=True)
    (tmp_path / "precious" / ("0" * 16) / "file").write_bytes(b"precious")
    (tmp_path / "out").mkdir()
    return tmp_path / "precious"


def is_whole(precious: Path) -> bool:
    found = {str(path.relative_to(precious)) for path in precious.rglob("*")}
    return found == {"0" * 16, "0" * 16 + "/file"} and (precious / ("0" * 16) / "file").read_bytes() == b"precious"


def lock(out: Path) -> None:
    with hold_folder(out):
        pass


def log(out: Path) -> None:
    handler = LogToFile(out / "log.txt")
    handler._open(SimpleNamespace())  # type: ignore[arg-type]
    logging.getLogger().warning("written")
    handler._close(SimpleNamespace())  # type: ignore[arg-type]


def ledger(out: Path) -> None:
    Ledger.open(out, {}).close()


@pytest.mark.parametrize(
    ("name", "use"),
    [
        (".lock", lock),
        ("log.txt", log),
        ("ledger.sqlite", ledger),
        ("ledger.sqlite-journal", ledger),
    ],
)
@pytest.mark.parametrize("target", ["file", "elsewhere"])
def test_a_link_in_place_of_a_file_is_refused(
    precious: Path, name: str, use: Callable[[Path], None], target: str
) -> None:
    out = precious.parent / "out"
    (out / name).symlink_to(precious / ("0" * 16) / target)
    with pytest.raises((ValueError, OSError)):
        use(out)
    assert is_whole(precious)


def test_a_link_in_place_of_the_studies_is_refused(precious: Path) -> None:
    out = precious.parent / "out"
    (out / STUDIES).symlink_to(precious)
    _remove_unlisted(out, SimpleNamespace(rows=lambda: []))  # type: ignore[arg-type]
    assert is_whole(precious)
    (precious.parent / "in").mkdir()
    with pytest.raises((ValueError, FileNotFoundError)):
        run_dicom(precious.parent / "in", out, progress=False)
    assert is_whole(precious)


def test_a_link_in_place_of_a_study_goes_and_its_target_stays(precious: Path) -> None:
    out = precious.parent / "out"
    (out / STUDIES).mkdir()
    (out / STUDIES / ("1" * 16)).symlink_to(precious / ("0" * 16))
    _remove_unlisted(out, SimpleNamespace(rows=lambda: []))  # type: ignore[arg-type]
    assert is_whole(precious) and not (out / STUDIES / ("1" * 16)).is_symlink()


@pytest.mark.parametrize("name", [INBOX, RUNS, WORK])
def test_a_node_with_a_link_among_its_folders_does_not_start(precious: Path, name: str) -> None:
    pytest.importorskip("pynetdicom")
    out = precious.parent / "out"
    (out / name).symlink_to(precious)
    with pytest.raises(ValueError, match=f"{name}: expected a folder of this run, got a link"):
        run_listen(out)
    assert is_whole(precious) and [path.name for path in out.iterdir()] == [name]


def test_an_inbox_leaves_what_a_link_points_at(precious: Path) -> None:
    inbox = Inbox(precious.parent / "out" / INBOX, Limits(), 1)
    (inbox.folder / "study").symlink_to(precious / ("0" * 16))
    assert inbox.studies() == []
    inbox.remove("study")
    assert is_whole(precious)
