"""A folder of studies in, a folder of results out: scan, ledger, studies one after the other or several at a time, report.

The input may first be fetched from an archive by DICOMweb, and the results stored in one at the end.
Every file of the input has one row in the ledger before the first study begins, and one result in the end. Studies are recorded when
their outputs lie on the disk, so that a run that was ended in any way goes on with `resume` and ends as if nothing had happened.
"""

from __future__ import annotations

import csv
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

from tqdm import tqdm

from synboost_monai.dicom.identity.deidentify import read_key
from synboost_monai.dicom.limits import Limits
from synboost_monai.dicom.reading.scan import mark_duplicates, scan
from synboost_monai.dicom.reading.scanned_file import ScannedFile, is_uid
from synboost_monai.dicom.reasons import Outcome
from synboost_monai.files import read_text
from synboost_monai.hospital.delivery import RECORD, Delivery, Send
from synboost_monai.hospital.engines import Engine, create_engine
from synboost_monai.hospital.fetch import INBOX, fetch_into
from synboost_monai.hospital.ledger import DATABASE, TABLE, Ledger, Result
from synboost_monai.hospital.options import BatchOptions
from synboost_monai.hospital.peers import Peers
from synboost_monai.hospital.privacy import Naming, path_display
from synboost_monai.hospital.report import MEASURES_NAME, REPORT_NAME, write_report_page
from synboost_monai.hospital.study import STUDIES, StudyOptions, digest_of
from synboost_monai.paths import check_own_folders, refuse_overwriting, remove_own_folder
from synboost_monai.processes import hold_folder, private_files

ALL_DONE, SOME_REFUSED = 0, 1
"""Exit codes: every file processed, uncalibrated or skipped; some refused. 2 is that of every verb that failed."""
RETRIED = frozenset(
    "cannot_write unreadable vanished changed model_failed out_of_memory timeout decoder_died worker_lost".split()
)
"""Reasons that may lie in the machine and not in the file: `resume` tries these files again."""
HASH_SECONDS = 60
"""Time that the hash of a file that is not for us may take; one that takes longer (a file with terabytes of holes) has none."""
SENDING = ".sending"
"""Folder in OUT for copies of results in other transfer syntaxes, while they are sent."""
_UNFINISHED = re.compile(r"\.\d+-[0-9a-f]{8}\.(ledger\.csv|report\.html|measurements\.csv)")
"""Names of files in OUT that were being written (`files.atomic_path`): ours alone, OUT may hold other things."""
_STUDY_FOLDER = re.compile(r"[0-9a-f]{16}")
"""Names of the folders in OUT/studies."""


def run_dicom(
    in_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    options: BatchOptions | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
    progress: bool = True,
) -> int:
    """Segment and measure all studies below a folder.

    Args:
        in_dir: any tree, or one file; it is only read. With `options.from_`, a folder into which studies are fetched, made if missing.
        out_dir: folder for ledger.sqlite, ledger.csv, report.html and studies/; made if missing.
        options: what is wanted.
        overrides: keys of the bundle's inference.yaml.
        limits: largest sizes and longest times of a file.
        progress: show bars on stderr.
    Returns:
        `ALL_DONE`; or `SOME_REFUSED`, also if something could not be fetched, or not be stored in the archive.
    Raises:
        FileNotFoundError, ValueError: if the run itself fails: there is no input, or `out_dir` belongs to another run or cannot be
            written.
    """
    in_dir, out_dir, wanted = Path(in_dir), Path(out_dir), options or BatchOptions()
    if wanted.from_ is None and not in_dir.exists():
        raise FileNotFoundError(f"{in_dir}: no such folder; give the folder of the studies")
    place, written = in_dir.resolve(), out_dir.resolve()
    if place == written or (written / STUDIES) in (place, *place.parents):
        raise ValueError(f"{out_dir}: the output would lie among the input; give another folder")
    if wanted.from_ is not None and in_dir.exists() and not in_dir.is_dir():
        raise ValueError(f"{in_dir}: this is a file; give a folder into which studies are fetched")
    if wanted.from_ is not None and written in place.parents:
        raise ValueError(
            f"{in_dir}: patients' images would be fetched into the outputs; give a folder outside {out_dir}"
        )
    if wanted.deidentify is not None and written in Path(wanted.deidentify).resolve().parents:
        raise ValueError(
            f"{wanted.deidentify}: the key would lie among the outputs, and be given away with them; move it elsewhere"
        )
    read = [wanted.given, wanted.deidentify, wanted.checkpoint_path, wanted.scout]
    outputs = [out_dir / name for name in (DATABASE, TABLE, REPORT_NAME, MEASURES_NAME, RECORD)]
    refuse_overwriting(outputs, read, "give another folder for the results")
    peers = Peers.of(("from", wanted.from_), ("to", wanted.to))
    if peers.is_same and wanted.deidentify is not None:
        raise ValueError(
            "to is the archive of from: de-identified copies would come among the originals; give another one"
        )
    of_study = StudyOptions.of(
        wanted,
        given={} if wanted.given is None else read_given(wanted.given),
        key=None if wanted.deidentify is None else read_key(wanted.deidentify),
        limits=limits or Limits(),
    )
    with (
        private_files(),
        _what_the_system_refuses(in_dir, out_dir),
        hold_folder(out_dir),
        create_engine(wanted.engine, of_study, dict(overrides or {}), wanted.workers, wanted.ray_address) as runner,
    ):
        is_whole, resume = True, wanted.resume
        if peers.source is not None:
            with hold_folder(in_dir):
                settings = run_settings(in_dir / INBOX, runner, of_study, wanted.paths)
                # a folder of another run is refused now, and not when all has been fetched
                Ledger.open(out_dir, settings, resume, Naming(of_study.key)).close()
                is_whole = not fetch_into(in_dir, peers.source, of_study.limits, progress).num_failed
            in_dir, resume = in_dir / INBOX, True
        rows = work_through(in_dir, out_dir, runner, of_study, paths=wanted.paths, resume=resume, progress=progress)
        if peers.send is not None:
            is_whole = _deliver(out_dir, rows, peers.send) and is_whole
    counts = Counter(str(row["outcome"]) for row in rows)
    _say(out_dir, {outcome.value: counts[outcome.value] for outcome in Outcome})
    return ALL_DONE if is_whole and not counts[Outcome.REFUSED.value] else SOME_REFUSED


def work_through(
    in_dir: Path,
    out_dir: Path,
    runner: Engine,
    options: StudyOptions,
    *,
    paths: str = "redacted",
    resume: bool = False,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Take a folder through an engine that is there already; the caller holds `out_dir`.

    Args:
        in_dir, out_dir, progress: as for `run_dicom`; paths, resume: as in `BatchOptions`.
        runner: an engine.
        options: the options that the engine was made with.
    Returns:
        the ledger's rows.
    Raises:
        ValueError: if `out_dir` is of another run.
    """
    settings, naming = run_settings(in_dir, runner, options, paths), Naming(options.key)
    check_own_folders(out_dir, [STUDIES])
    with Ledger.open(out_dir, settings, resume, naming) as ledger:
        for name in filter(_UNFINISHED.fullmatch, os.listdir(out_dir)):  # when the process was ended
            (out_dir / name).unlink(missing_ok=True)
        files = _scanned(in_dir, out_dir, options.limits, progress)
        words = frozenset().union(*(file.identifiers for file in files)) if paths == "redacted" else frozenset()
        if resume:
            ledger.reopen(RETRIED)
            ledger.reopen_changed(files)
        ledger.begin(files, path_display(paths, words, naming))
        if resume:
            _remove_unlisted(out_dir, ledger)
        waiting = ledger.pending(files)
        _record_unused(ledger, waiting, progress)
        _run_studies(ledger, runner, out_dir, studies_of(waiting, files), progress)
        ledger.write_csv()
        rows = list(ledger.rows())
        write_report_page(out_dir, rows, {**settings, "options": options.settings()})
    return rows


def _deliver(out_dir: Path, rows: Iterable[Mapping[str, Any]], send: Send) -> bool:
    """Store the results in an archive that has not all of them; return whether it has them now."""
    delivery = Delivery.load(out_dir) or Delivery([])
    delivery.update(out_dir, [], {output for row in rows for output in row["outputs"] if output.endswith(".dcm")})
    delivery.take_up()
    delivery.save(out_dir)
    remove_own_folder(out_dir / SENDING)
    words = delivery.send(out_dir, send, out_dir / SENDING)
    remove_own_folder(out_dir / SENDING)
    again = "" if delivery.is_delivered else "; --resume tries again"
    print(f"archive: {words or 'it has all results'}{again}", file=sys.stderr)
    return delivery.is_delivered


def run_settings(in_dir: Path, runner: Engine, options: StudyOptions, paths: str = "redacted") -> dict[str, Any]:
    """Return all that must be the same for a run to go on."""
    return {
        **Naming(options.key).settings(in_dir),
        "paths": paths,
        **runner.identity,
        **options.settings(),
    }


def studies_of(waiting: Sequence[ScannedFile], files: Sequence[ScannedFile]) -> list[list[ScannedFile]]:
    """Return the files for the network by study, in the order of the scan; a study with one file to do is done whole."""
    open_studies = {file.study_uid for file in waiting if file.reason is None}
    studies: dict[str, list[ScannedFile]] = {}
    for file in files:
        if file.reason is None and file.study_uid in open_studies:
            studies.setdefault(file.study_uid, []).append(file)
    return list(studies.values())


def read_given(path: str | os.PathLike[str]) -> dict[str, tuple[int, int]]:
    """Read the chosen frames: SOP Instance UID -> indices of end-diastole and end-systole.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a column is missing, or a line is no UID and two different frames from 1.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path}: no such file; it should have columns sop_instance_uid, end_diastole, end_systole"
        )
    given = {}
    for number, row in enumerate(csv.DictReader(StringIO(read_text(path))), start=2):
        try:
            uid, frames = row["sop_instance_uid"].strip(), (int(row["end_diastole"]) - 1, int(row["end_systole"]) - 1)
        except (KeyError, TypeError, ValueError, AttributeError):
            uid, frames = "", (-1, -1)
        if not is_uid(uid) or min(frames) < 0 or frames[0] == frames[1]:
            raise ValueError(
                f"{path}: line {number}: expected columns sop_instance_uid, end_diastole, end_systole with a UID and two different "
                "frame numbers from 1"
            )
        given[uid] = frames
    return given


def _scanned(in_dir: Path, out_dir: Path, limits: Limits, progress: bool) -> list[ScannedFile]:
    """Return every file of the input, with copies and contradictions of the same object marked."""
    found = scan(in_dir, limits, exclude=[out_dir])
    return mark_duplicates(list(_bar(found, "scan", "file", progress)), limits=limits)


def _remove_unlisted(out_dir: Path, ledger: Ledger) -> None:
    """Remove folders of studies that no result names: of a process that was ended, or of a study that is done again or not any more."""
    named = {Path(output).parts[1] for row in ledger.rows() for output in row["outputs"]}
    for folder in (out_dir / STUDIES).glob("*"):
        if _STUDY_FOLDER.fullmatch(folder.name) and folder.name not in named:
            remove_own_folder(folder)


def _record_unused(ledger: Ledger, waiting: Iterable[ScannedFile], progress: bool) -> None:
    """Record the files that are not for the network, with their hashes."""
    results = []
    for file in _bar([f for f in waiting if f.reason is not None], "hash", "file", progress):
        is_readable = file.reason.reason.code not in ("special_file", "symlink", "vanished", "unreadable")
        results.append(Result.of(file, sha256=digest_of(file, HASH_SECONDS) if is_readable else ""))
    ledger.record(*results)


def _run_studies(
    ledger: Ledger, runner: Engine, out_dir: Path, studies: list[list[ScannedFile]], progress: bool
) -> None:
    """Let the engine work on every study, and record each as it ends."""
    with tqdm(total=len(studies), desc="studies", unit="study", disable=not progress or not studies) as bar:
        for results in runner.run(studies, out_dir):
            ledger.record(*results)
            bar.update()


def _bar(items: Iterable[Any], what: str, unit: str, progress: bool) -> Iterator[Any]:
    return iter(tqdm(items, desc=what, unit=unit, disable=not progress, leave=False))


@contextmanager
def _what_the_system_refuses(in_dir: Path, out_dir: Path) -> Iterator[None]:
    """Report a full or read-only disk, or a folder that cannot be read, as what makes the run fail."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        problem = os.strerror(error.errno).lower() if error.errno else "the disk refused"
        if error.filename is not None and os.fsdecode(error.filename) == os.path.abspath(in_dir):
            raise ValueError(f"{in_dir}: the folder of the studies cannot be read: {problem}") from error
        advice = "make it writable with room to spare and go on by --resume, or give another folder"
        raise ValueError(f"{out_dir}: the results cannot be written: {problem}; {advice}") from error


def _say(out_dir: Path, counts: Mapping[str, int]) -> None:
    """Say what became of the files, and where to look."""
    parts = [f"{count} {outcome}" for outcome, count in counts.items() if count]
    print(f"{sum(counts.values())} files: {', '.join(parts) or 'none'}", file=sys.stderr)
    shown = os.fsencode(out_dir).decode("utf-8", "backslashreplace")
    print(f"report: {shown}/report.html\nledger: {shown}/ledger.csv")
