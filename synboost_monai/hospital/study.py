"""Read, segment and write each clip of a study, then measure it. A study's results are recorded all together or not at all.

The outputs are a function of the study's files, the model and the options: made again on one kind of processor,
they are the same bytes in the same places.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from synboost_monai import __version__
from synboost_monai.dicom.identity.deidentify import deidentify, deidentify_header
from synboost_monai.dicom.limits import Limits
from synboost_monai.dicom.reading.files import OpenFile, file_digest, open_regular
from synboost_monai.dicom.reading.header import read_header
from synboost_monai.dicom.reading.read import ClipFacts
from synboost_monai.dicom.reading.scanned_file import ScannedFile, check_unchanged, short_hash
from synboost_monai.dicom.reading.sector import find_sector, has_text, sample_indices
from synboost_monai.dicom.reading.worker import ClipStream, ReaderPool
from synboost_monai.dicom.reasons import REASONS, NotUsableError
from synboost_monai.dicom.writing.contours import write_contours
from synboost_monai.dicom.writing.objects import Provenance
from synboost_monai.dicom.writing.overlay import Display, write_overlay, write_overlay_png
from synboost_monai.dicom.writing.pdf import write_pdf
from synboost_monai.dicom.writing.seg import write_segmentation
from synboost_monai.dicom.writing.sr import write_report
from synboost_monai.files import atomic_write_text
from synboost_monai.hospital.clip import ReadFrames, SegmentedClip, segment_clip
from synboost_monai.hospital.ledger import Result
from synboost_monai.hospital.measures import measure_study
from synboost_monai.hospital.options import OHIF, SEGMENTATION_CHOICES, VIEW_CHOICES, HospitalOptions
from synboost_monai.hospital.privacy import Naming
from synboost_monai.hospital.results import report_measurements, study_results, write_results
from synboost_monai.hospital.sheet import patient_details, study_sheet
from synboost_monai.pages.sheet import sheet_html
from synboost_monai.pages.sheet_pdf import sheet_pdf
from synboost_monai.paths import own_folder, remove_own_folder
from synboost_monai.records import VIEWS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from synboost_monai.hospital.model import EchoSegmenter

Study = Sequence[ScannedFile]

STUDIES = "studies"
"""Folder of the outputs, with one folder per study in it."""
SEGMENTATION, OVERLAY, CONTOURS, REPORT, SHEET, COPY = "seg", "overlay", "contours", "sr", "report", "deidentified"
"""First words of the names of the outputs."""
PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class StudyOptions(HospitalOptions):
    """Hold what a run wants of each study."""

    window: int = 32
    """Number of frames in memory at a time."""
    given: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """SOP Instance UID -> indices of the frames of end-diastole and end-systole that somebody chose."""
    key: bytes | None = None
    """Secret of `--deidentify`: outputs refer to de-identified copies, which are written too."""
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def of(cls, options: HospitalOptions, **more: Any) -> StudyOptions:
        """Return what the options of a run mean for each study, and further fields.

        Raises:
            ValueError: if highdicom, which writes segmentations and reports, is not installed.
        """
        if importlib.util.find_spec("highdicom") is None:
            raise ValueError('segmentations and reports are written by highdicom: pip install "synboost-monai[dicom]"')
        return cls(**{f.name: getattr(options, f.name) for f in fields(HospitalOptions)}, **more)

    def settings(self) -> dict[str, Any]:
        """Return all settings that outputs depend on, ready for JSON.

        They are written into outputs, so with a key they hold nothing that leads to an original, and of the key only that there is one:
        under another key the UIDs differ anyway.
        """
        naming = Naming(self.key)
        return {
            "frames": self.frames,
            "view": VIEW_CHOICES[self.view] or "auto",
            "segmentation": self.segmentation,
            "overlay": self.overlay,
            "contours": self.contours,
            "report": self.report,
            "given": dict(sorted((naming.instance(uid), list(frames)) for uid, frames in self.given.items())),
            "deidentify": "" if self.key is None else "yes",
        }


@dataclass
class _Segmented:
    """Hold a clip of a study with what its outputs need."""

    file: ScannedFile
    name: str
    header: Any  # pydicom's Dataset
    """Header of the file, or of its de-identified copy."""
    clip: SegmentedClip
    outputs: list[Path] = field(default_factory=list)


class StudyProcessor:
    """A StudyProcessor makes the outputs of studies.

    Args:
        model: the segmenter.
        pool: reads the files in separate processes.
        options: what is wanted.
    """

    def __init__(self, model: EchoSegmenter, pool: ReaderPool, options: StudyOptions) -> None:
        self.model, self.pool, self.options = model, pool, options
        digest = hashlib.sha256(json.dumps(options.settings(), sort_keys=True).encode()).hexdigest()[:16]
        self.provenance = Provenance(
            model.name,
            model_sha256=model.settings_digest,
            weights_sha256=model.weights_sha256,
            settings_sha256=digest,
            software_version=__version__,
        )

    @property
    def identity(self) -> dict[str, str]:
        """Return what distinguishes one model from another."""
        return {
            "model": self.provenance.model,
            "model_sha256": self.provenance.model_sha256,
            "weights_sha256": self.provenance.weights_sha256,
            "software": self.provenance.software_version,
        }

    def __call__(self, files: Study, out_dir: Path) -> list[Result]:
        """Make the outputs of one study, and return what became of each of its files.

        Args:
            files: all files of the study that are for us, in the order of the scan.
            out_dir: the run's folder.
        Returns:
            one result for each file; nothing is recorded here.
        """
        if len({file.patient_key for file in files}) > 1:
            return refused(files, NotUsableError("patients_mixed"), self.options.limits)
        folder = study_folder(out_dir, self.options, files[0].study_uid)
        remove_own_folder(folder)  # from an attempt that was cut short
        results: dict[str, Result] = {}
        segmented: list[_Segmented] = []
        too_long = _too_long(files, self.options.limits.max_study_frames)
        for file in files:
            start = time.monotonic()
            digest = ""
            try:
                check_unchanged(file)
                if file.path in too_long:
                    raise NotUsableError("study_too_long", limit=self.options.limits.max_study_frames)
                with open_regular(file.path) as opened:
                    seconds = self.options.limits.seconds_per_file
                    digest = file_digest(opened, file.size, file.mtime_ns, max_seconds=seconds)
                    # a worker opens the file once for its facts and all its frames
                    with self.pool.open(file.path, self.options.window) as stream:
                        check_unchanged(file)  # it is the file that is open here
                        found = self._segment(file, opened, stream, folder)
            except Exception as error:  # noqa: BLE001  a file must not end the run, whatever it does to a library
                results[file.path] = Result.of(file, problem_of(error), sha256=digest, seconds=time.monotonic() - start)
                continue
            segmented.append(found)
            problem = found.clip.facts.calibration_problem
            code = "segmented" if problem is None else problem.reason.code
            words = str(problem or REASONS["segmented"].sentence.format(frames=found.clip.facts.num_frames))
            results[file.path] = Result(
                file, code, words, digest, self.model.weights_sha256, (), time.monotonic() - start
            )
        failure = self._finish_or_remove(folder, segmented)
        for found in segmented:
            before = results[found.file.path]
            if failure is None:
                outputs = sorted(path.relative_to(out_dir).as_posix() for path in found.outputs)
                results[found.file.path] = replace(before, outputs=tuple(outputs))
            else:
                facts = {"sha256": before.sha256, "seconds": before.seconds}
                results[found.file.path] = Result.of(found.file, failure, **facts)
        return [results[file.path] for file in files]

    # --- one clip ----------------------------------------------------------------------------------------------------

    def _segment(self, file: ScannedFile, opened: OpenFile, stream: ClipStream, folder: Path) -> _Segmented:
        """Segment a clip and write its own outputs."""
        facts, options = stream.facts, self.options
        if options.key is not None:  # prompts are written, so they may say no more than a copy
            facts = replace(facts, sex=None, age=None, height_m=None, weight_kg=None)
        view = VIEW_CHOICES[options.view]
        if facts.view is not None and facts.view not in VIEWS.values() and view is None:
            raise NotUsableError("other_view", view=facts.view.replace("_", " "))

        clip = segment_clip(
            self.model,
            facts,
            stream.read,
            view=view,
            given=options.given.get(file.sop_instance_uid),
            keeps_all=options.frames == "all",
        )
        header = read_header(opened, options.limits)
        if options.key is not None:
            header = deidentify_header(header, options.key)
        found = _Segmented(file, short_hash(str(header.SOPInstanceUID)), header, clip)
        try:
            folder.parents[1].mkdir(parents=True, exist_ok=True)
            own_folder(own_folder(folder.parent) / folder.name)
            self._write_segmentation(found, folder)
            self._write_contours(found, folder)
            self._write_pictures(found, folder, stream.read)
            if options.key is not None:
                target = folder / f"{COPY}_{found.name}.dcm"
                deidentify(opened, target, options.key, limits=options.limits)
                found.outputs.append(target)
        except BaseException:
            for part in folder.glob(f"*_{found.name}*"):  # a clip's outputs are kept whole or not at all
                part.unlink(missing_ok=True)
            raise
        return found

    def _write_segmentation(self, found: _Segmented, folder: Path) -> None:
        """Write a DICOM SEG of the frames that are wanted."""
        clip, facts = found.clip, found.clip.facts
        indices = self._frames_of(clip)
        maps = (_in_full_frame(clip.label_maps[i], facts)[None] for i in indices)
        path = folder / f"{SEGMENTATION}_{found.name}.dcm"
        prompts = [*_prompts(clip), *(clip.first_prompts if self.options.frames == "all" else ())]
        write_segmentation(
            found.header,
            maps,
            [i + 1 for i in indices],
            path,
            provenance=replace(self.provenance, prompts=tuple(dict.fromkeys(prompts))),
            segmentation_type=SEGMENTATION_CHOICES[self.options.segmentation],
            nominal_spacing_mm=facts.spacing_mm if self.options.segmentation == OHIF else None,
        )
        found.outputs.append(path)

    def _write_contours(self, found: _Segmented, folder: Path) -> None:
        """Write the outlines of the judged frames as structured report, if it is wanted and there are any."""
        clip = found.clip
        maps = {i + 1: _in_full_frame(clip.label_maps[i], clip.facts) for i in clip.frames}
        if not self.options.contours or not any(label_map.any() for label_map in maps.values()):
            return
        path = folder / f"{CONTOURS}_{found.name}.dcm"
        write_contours(found.header, maps, path, provenance=replace(self.provenance, prompts=_prompts(clip)))
        found.outputs.append(path)

    def _write_pictures(self, found: _Segmented, folder: Path, read: ReadFrames) -> None:
        """Write the overlay, and thumbnails of the judged frames; only the sector is shown."""
        clip, facts = found.clip, found.clip.facts
        shape = facts.region.rows, facts.region.columns
        is_region = facts.calibration_problem is None or shape != (facts.rows, facts.columns)
        within = np.ones(shape, bool) if is_region else None  # the header gives the region: no text around the sector
        samples = np.concatenate(list(read(sample_indices(facts.num_frames, shape[0] * shape[1]))))
        sector = find_sector(samples, within)
        if not sector.any():
            return  # nothing may be shown
        clip.has_text = has_text(samples, sector)
        for index in clip.frames:
            frame = np.concatenate(list(read([index])))[0]
            path = folder / f"frame_{found.name}_{index + 1}.png"
            write_overlay_png(frame, clip.label_maps[index], sector, path, facts.spacing_mm)
            found.outputs.append(path)
        if not self.options.overlay:
            return
        indices = self._frames_of(clip)
        is_all = len(indices) == facts.num_frames
        times = facts.frame_times_ms
        path = folder / f"{OVERLAY}_{found.name}.dcm"
        write_overlay(
            found.header,
            _pairs(read(None if is_all else indices), clip, indices),
            [i + 1 for i in indices],
            path,
            display=Display(sector, clip.has_text, facts.spacing_mm, times if is_all else None),
            provenance=self.provenance,
        )
        found.outputs.append(path)

    def _frames_of(self, clip: SegmentedClip) -> list[int]:
        """Return the indices of the frames that are written."""
        return list(range(clip.facts.num_frames)) if self.options.frames == "all" else clip.frames

    # --- the whole study ---------------------------------------------------------------------------------------------

    def _finish_or_remove(self, folder: Path, segmented: Sequence[_Segmented]) -> NotUsableError | None:
        """Write the outputs of the study as a whole; if that fails, remove all its outputs and return the reason."""
        if not segmented:
            remove_own_folder(folder)
            return None
        try:
            self._finish(folder, segmented)
        except Exception as error:  # noqa: BLE001  as for a file
            remove_own_folder(folder)
            return problem_of(error)
        return None

    def _finish(self, folder: Path, segmented: Sequence[_Segmented]) -> None:
        """Write the study's measures as structured report, JSON and CSV, which count as outputs of every clip."""
        clips = {found.name: found.clip for found in segmented}
        headers = {found.name: found.header for found in segmented}
        instances = {name: str(header.SOPInstanceUID) for name, header in headers.items()}
        measures = measure_study(clips)
        results = study_results(
            folder.name,
            str(segmented[0].header.StudyInstanceUID),
            {**self.provenance.parameters(), "model": self.provenance.model, "options": self.options.settings()},
            clips,
            instances,
            measures,
        )
        paths = write_results(results, folder)
        classes = {name: (str(header.SOPClassUID), instances[name]) for name, header in headers.items()}
        if numbers := report_measurements(measures, classes, results["sex"]):
            used = sorted({name for m in measures for name, _ in m.sources})
            path = folder / f"{REPORT}.dcm"
            write_report(
                [headers[name] for name in used],
                numbers,
                path,
                provenance=replace(self.provenance, prompts=_prompts(*(clips[name] for name in used))),
                needs_review=results["verdict"] == "review",
                review_reasons=results["reasons"],
            )
            paths.append(path)
        if self.options.report != "none":
            paths += self._write_sheet(results, folder, segmented)
        for found in segmented:
            found.outputs += paths

    def _write_sheet(self, results: Mapping[str, Any], folder: Path, segmented: Sequence[_Segmented]) -> list[Path]:
        """Write the page for people: as HTML without the patient, and as PDF for the archive with the patient."""
        language = self.options.report
        headers = sorted((found.header for found in segmented), key=lambda header: str(header.SOPInstanceUID))
        html, pdf = folder / f"{SHEET}.html", folder / f"{SHEET}.dcm"
        sheet = study_sheet(results, folder, language)
        atomic_write_text(html, sheet_html(sheet))
        named = replace(sheet, details=[*patient_details(headers[0], language), *sheet.details])
        write_pdf(headers, sheet_pdf(named), pdf, title=sheet.title, provenance=self.provenance)
        return [html, pdf]


def study_folder(out_dir: Path, options: StudyOptions, study_uid: str) -> Path:
    """Return the folder of a study's outputs: a hash of its UID, or of the UID of its de-identified copies."""
    return out_dir / STUDIES / Naming(options.key).study(study_uid)


def refused(files: Study, problem: NotUsableError, limits: Limits) -> list[Result]:
    """Return the results of a study whose files are all refused for one reason, with their hashes where these can be had in time."""
    return [Result.of(file, problem, sha256=digest_of(file, limits.seconds_per_file)) for file in files]


def digest_of(file: ScannedFile, max_seconds: float) -> str:
    """Return the SHA-256 of a file; '' where it cannot be read, or not in time."""
    with contextlib.suppress(NotUsableError):
        return file_digest(file.path, file.size, file.mtime_ns, max_seconds=max_seconds)
    return ""


def problem_of(error: Exception) -> NotUsableError:
    """Return an error as the reason why a file or study failed.

    For an unforeseen error the reason gives the place in our own code, not the message, which may hold anything from the file.
    """
    if isinstance(error, NotUsableError):
        return error
    if isinstance(error, OSError):
        return NotUsableError(
            "cannot_write", problem=os.strerror(error.errno).lower() if error.errno else "the disk refused"
        )
    if isinstance(error, MemoryError):
        return NotUsableError("model_failed", problem="memory is short")
    ours = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(PACKAGE)]
    place = f" at line {ours[-1].lineno} of {Path(ours[-1].filename).relative_to(PACKAGE).as_posix()}" if ours else ""
    return NotUsableError("model_failed", problem=f"an unforeseen error{place}")


def _too_long(files: Sequence[ScannedFile], max_frames: int) -> frozenset[str]:
    """Return the paths of clips beyond a study's limit of frames; the shortest count first, so that one more cannot push out the others."""
    num_frames = 0
    found = set()
    for file in sorted(files, key=lambda file: file.frames or 0):
        if num_frames + (file.frames or 0) > max_frames:
            found.add(file.path)
        else:
            num_frames += file.frames or 0
    return frozenset(found)


def _prompts(*clips: SegmentedClip) -> tuple[str, ...]:
    """Return the prompts of the frames that stand for these clips, each once."""
    return tuple(dict.fromkeys(text for clip in clips for i in clip.frames for text in clip.prompts[i]))


def _in_full_frame(label_map: NDArray[np.uint8], facts: ClipFacts) -> NDArray[np.uint8]:
    """Return the region's label map within the whole image."""
    region = facts.region
    whole = np.zeros((facts.rows, facts.columns), np.uint8)
    whole[
        region.first_row : region.first_row + region.rows, region.first_column : region.first_column + region.columns
    ] = label_map
    return whole


def _pairs(
    windows: Iterator[NDArray[np.uint8]], clip: SegmentedClip, indices: Sequence[int]
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Yield frames with their label maps, window by window."""
    start = 0
    for window in windows:
        maps = np.stack([clip.label_maps[i] for i in indices[start : start + len(window)]])
        start += len(window)
        yield window, maps
