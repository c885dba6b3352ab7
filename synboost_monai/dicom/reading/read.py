"""Read one ultrasound object: the facts of its header, and its frames in grey, cropped to the tissue region.

    with open_ultrasound(path) as clip:
        clip.facts.spacing_mm, clip.facts.view
        frames = clip.read_frames(range(32))  # (T, rows, columns) uint8 of the region

Facts are plain values, and of the file's texts hold only UIDs, so they can be logged, pickled and sent between processes.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from synboost_monai.dicom.limits import Limits
from synboost_monai.dicom.reading.decode import FrameReader, frame_reader
from synboost_monai.dicom.reading.files import Closing
from synboost_monai.dicom.reading.regions import MIN_SIDE, Region, choose_region
from synboost_monai.dicom.reading.values import first_number_in, numbers_in, text_in
from synboost_monai.dicom.reading.view import view_of_header
from synboost_monai.dicom.reasons import NotUsableError
from synboost_monai.dicom.writing.objects import is_date

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

FRAME_MS = (1.0, 1000.0)
"""Shortest and longest plausible time from one frame to the next, in milliseconds."""
HEART_RATES = (20.0, 300.0)
"""Lowest and highest plausible heart rate, in beats per minute."""
MAX_AGE = 120
"""Highest plausible age, in years."""
_SEXES = {"M": "male", "F": "female"}
_YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}


@dataclass(frozen=True)
class ClipFacts:
    """Hold the facts of an ultrasound object that are known before its frames are read."""

    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    rows: int
    columns: int
    """Columns of the whole image, as `rows`."""
    num_frames: int
    region: Region
    """Part of the image that is read and segmented."""
    frame_times_ms: tuple[float, ...] | None
    """Start of each frame, counted from the first; None for a single frame, or if not known."""
    heart_rate: float | None
    """Beats per minute."""
    r_wave_times_ms: tuple[float, ...]
    """R waves of the ECG, counted from the first frame; empty if there are none."""
    view: str | None
    """apical_four_chamber, apical_two_chamber or another view; None if not known."""
    sex: str | None
    """male or female; None if not known."""
    age: int | None
    """Age in years."""
    decoder: str
    """Name and version of the decoder of the frames."""
    height_m: float | None = None
    """Height of the patient as the header has it, plausible or not; None if it is not known."""
    weight_kg: float | None = None
    """Weight of the patient, as `height_m`."""

    @property
    def spacing_mm(self) -> tuple[float, float] | None:
        """(row, column); None without a calibration."""
        return self.region.spacing_mm

    @property
    def calibration_problem(self) -> NotUsableError | None:
        """Why there is no calibration."""
        return self.region.problem


class UltrasoundClip(Closing):
    """Represent an open ultrasound object, made by `open_ultrasound`; close it, or use it in `with`."""

    def __init__(self, reader: FrameReader) -> None:
        self._reader = reader
        self.facts = read_facts(reader)
        """The facts of the header."""
        region = self.facts.region
        self._rows = slice(region.first_row, region.first_row + region.rows)
        self._columns = slice(region.first_column, region.first_column + region.columns)

    @property
    def num_frames(self) -> int:
        """Frames of the clip."""
        return self.facts.num_frames

    def read_frames(self, frame_indices: Sequence[int]) -> NDArray[np.uint8]:
        """Return frames of the region by index, (T, rows, columns) uint8.

        Raises:
            NotUsableError: for the first frame that cannot be decoded.
        """
        region = self.facts.region
        frames = np.empty((len(frame_indices), region.rows, region.columns), np.uint8)
        for frame, index in zip(frames, frame_indices):
            frame[:] = self._reader.read_frame(index)[self._rows, self._columns]
        return frames

    def check_not_blank(self) -> None:
        """Refuse a clip in which no frame shows anything; frames are read up to the first that does.

        Raises:
            NotUsableError: blank, or for a frame that cannot be decoded.
        """
        for index in range(self.num_frames):
            if np.ptp(self.read_frames([index])):
                return
        raise NotUsableError("blank")

    def close(self) -> None:
        """Close the file."""
        self._reader.close()


def open_ultrasound(path: str | os.PathLike[str], limits: Limits | None = None) -> UltrasoundClip:
    """Open an ultrasound object; check its header, and decode its frames up to the first that shows something.

    Args:
        path: path of a regular file.
        limits: of a file; the defaults if None.
    Raises:
        NotUsableError: with a reason of the scan or of reading (`reasons.py`); a problem of the calibration alone is in
            `facts.calibration_problem`.
    """
    reader = frame_reader(path, limits)
    try:
        clip = UltrasoundClip(reader)
        clip.check_not_blank()
    except BaseException:
        reader.close()
        raise
    return clip


def read_facts(reader: FrameReader) -> ClipFacts:
    """Return the facts of an open object.

    Raises:
        NotUsableError: too_small, or not_two_dimensional.
    """
    header, (rows, columns) = reader.header, reader.shape
    if min(rows, columns) < MIN_SIDE:
        raise NotUsableError("too_small", rows=rows, columns=columns, minimum=MIN_SIDE)
    return ClipFacts(
        sop_class_uid=_uid(header, "SOPClassUID"),
        sop_instance_uid=_uid(header, "SOPInstanceUID"),
        study_uid=_uid(header, "StudyInstanceUID"),
        rows=rows,
        columns=columns,
        num_frames=reader.num_frames,
        region=choose_region(header),
        frame_times_ms=frame_times_ms(header, reader.num_frames),
        heart_rate=_believed(first_number_in(header, "HeartRate"), HEART_RATES),
        r_wave_times_ms=tuple(sorted(n for n in numbers_in(header, "RWaveTimeVector") if n >= 0)),
        view=view_of_header(header),
        sex=_SEXES.get(text_in(header, "PatientSex").upper()),
        age=age_in_years(header),
        decoder=reader.decoder,
        height_m=first_number_in(header, "PatientSize"),
        weight_kg=first_number_in(header, "PatientWeight"),
    )


def frame_times_ms(header: Dataset, num_frames: int) -> tuple[float, ...] | None:
    """Return the start of each frame in milliseconds, counted from the first frame.

    They come from Frame Time Vector (increments, the first 0), Frame Time, Cine Rate or Recommended Display Frame Rate, the first of
    them that makes sense; None for a single frame or if none does.
    """
    if num_frames < 2:
        return None
    increments = numbers_in(header, "FrameTimeVector")
    if len(increments) == num_frames:
        steps = increments[1:]
        if all(step >= 0 for step in steps) and FRAME_MS[0] <= sum(steps) / len(steps) <= FRAME_MS[1]:
            return tuple(float(t) for t in np.cumsum([0.0, *steps]))
    step = _believed(first_number_in(header, "FrameTime"), FRAME_MS)
    for keyword in ("CineRate", "RecommendedDisplayFrameRate"):
        rate = first_number_in(header, keyword)
        if step is None and rate is not None and rate > 0:
            step = _believed(1000 / rate, FRAME_MS)
    return None if step is None else tuple(i * step for i in range(num_frames))


def age_in_years(header: Dataset) -> int | None:
    """Return the age by Patient's Age, else by the dates of birth and study; None if neither is plausible."""
    text = text_in(header, "PatientAge").upper()
    if text[-1:] in _YEARS and text[:-1].isascii() and text[:-1].isdigit():
        age = int(text[:-1]) * _YEARS[text[-1]]
        return int(age) if age <= MAX_AGE else None
    born = _date(header, "PatientBirthDate")
    at = next(
        filter(None, (_date(header, f"{kind}Date") for kind in ("Study", "Series", "Acquisition", "Content"))), None
    )
    if born is None or at is None:
        return None
    age = at.year - born.year - ((at.month, at.day) < (born.month, born.day))
    return age if 0 <= age <= MAX_AGE else None


def _date(header: Dataset, keyword: str) -> datetime.date | None:
    """Return a date, written 20240131 or in the old way 2024.01.31, or None."""
    text = text_in(header, keyword).replace(".", "")
    return datetime.datetime.strptime(text, "%Y%m%d").date() if is_date(text) else None


def _uid(header: Dataset, keyword: str) -> str:
    """Return a UID; '' if it is missing or not valid (the scan refuses such files)."""
    text = text_in(header, keyword)
    return text if len(text) <= 64 and text and set(text) <= set("0123456789.") else ""


def _believed(value: float | None, limits: tuple[float, float]) -> float | None:
    return value if value is not None and limits[0] <= value <= limits[1] else None
