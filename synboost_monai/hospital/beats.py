"""Find end-diastole and end-systole of a clip in how the left ventricle's area changes over time.

T: frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks

if TYPE_CHECKING:
    from numpy.typing import NDArray

SMOOTHING_MS = 30.0
"""Standard deviation of the Gaussian that the area is smoothed with: less than a phase of the heart, more than a frame at 50 Hz."""
SMOOTHING_FRAMES = 1.0
"""The same where the times of frames are not known."""
SHORTEST_BEAT_MS = 300.0
"""Minima of the area closer than this are one heart beat (200 a minute)."""
SHORTEST_BEAT_FRAMES = 6
"""The same where the times of frames are not known."""
MIN_CHANGE = 0.08
"""Smallest change of the area, as a share of its largest value, that counts as a beat: below are stills, other views, and segmentations
that do not follow the heart."""
MIN_PROMINENCE = 0.4
"""Smallest prominence of a minimum of the area, as a share of the whole change, at which it counts."""
MAX_INVALID = 0.3
"""Largest share of frames without a ventricle at which beats are still looked for."""


class NoBeatError(ValueError):
    """Report that no end-diastole and end-systole can be found in a clip; the message says why."""


@dataclass(frozen=True)
class Beat:
    """Represent one contraction."""

    end_diastole: int
    """Index of the frame with the largest area before the contraction, or of the R wave."""
    end_systole: int
    """Index of the frame with the smallest area at its end."""
    is_whole: bool
    """Whether neither frame, unless at an R wave, is at an end of the clip, where the extreme of the area may be out of sight."""


def find_beats(
    area: Sequence[float] | NDArray[Any],
    frame_times_ms: Sequence[float] | None = None,
    r_wave_times_ms: Sequence[float] = (),
) -> list[Beat]:
    """Find the contractions of a clip, in their order.

    End-systole is where the smoothed area has a minimum; end-diastole is its maximum between the minimum before, or the clip's
    beginning, and this one. With R waves, end-diastole is the frame nearest to the R wave, and end-systole the smallest area between
    this R wave and the next, or the clip's end.

    Args:
        area: area of the left ventricular cavity in each frame, (T,), any unit; 0 or NaN: no cavity was found.
        frame_times_ms: time of each frame, (T,), increasing; None: not known.
        r_wave_times_ms: times of the R waves on the same clock.
    Raises:
        NoBeatError: if there is no contraction, as in a clip of one frame.
    """
    areas = _filled(np.asarray(area, dtype=np.float64))
    times = None if frame_times_ms is None else np.asarray(frame_times_ms, dtype=np.float64)
    if times is not None and times.shape != areas.shape:
        raise ValueError(f"beats.py: {len(areas)} areas and {len(times)} times of frames; give one each")
    step_ms = None if times is None else float(np.median(np.diff(times)))
    sigma = SMOOTHING_FRAMES if not step_ms else SMOOTHING_MS / step_ms
    smooth = gaussian_filter1d(areas, sigma, mode="nearest") if sigma > 0 else areas
    change = float(smooth.max() - smooth.min())
    if change < MIN_CHANGE * float(smooth.max()):
        raise NoBeatError(
            f"the left ventricle's area changes by {100 * change / smooth.max():.0f} % only; at least {100 * MIN_CHANGE:.0f} % are a beat"
        )
    triggers = frames_of_r_waves(times, r_wave_times_ms)
    beats = _between(smooth, triggers) if triggers else _at_minima(smooth, change, step_ms)
    if not beats:
        raise NoBeatError("the area has no minimum after a maximum: the clip shows no contraction")
    return _refined(beats, areas, sigma, bool(triggers))


def _refined(beats: Sequence[Beat], area: NDArray[np.float64], sigma: float, is_triggered: bool) -> list[Beat]:
    """Move beats to the extremes of the area itself, near the smoothed ones: smoothing shifts them away from the steeper side.

    A beat stays behind the one before it and ahead of the next: beats of few frames lie within each other's reach.
    """
    reach = max(1, round(sigma))
    near = np.convolve(np.pad(area, 1, mode="edge"), np.full(3, 1 / 3), mode="valid")

    def extreme(at: int, sign: float, begin: int, end: int) -> int:
        first, last = max(begin, at - reach), min(end, at + reach + 1)
        return first + int((sign * near[first:last]).argmax())

    refined: list[Beat] = []
    for beat, end in zip(beats, [*(following.end_diastole for following in beats[1:]), len(area)]):
        begin = refined[-1].end_systole + 1 if refined else 0
        end_diastole, end_systole = beat.end_diastole, beat.end_systole
        if beat.is_whole:
            end_diastole = end_diastole if is_triggered else extreme(end_diastole, 1.0, begin, len(area))
            end_systole = extreme(end_systole, -1.0, begin, end)
        is_ordered = end_diastole < end_systole
        refined.append(Beat(end_diastole, end_systole, beat.is_whole) if is_ordered else beat)
    return refined


def _filled(area: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the areas, with those of empty frames interpolated from the frames beside them."""
    if area.ndim != 1 or len(area) < 2:
        raise NoBeatError("one frame has no beat")
    is_valid = np.isfinite(area) & (area > 0)
    if np.count_nonzero(~is_valid) > MAX_INVALID * len(area):
        raise NoBeatError(
            f"no left ventricle was found in {np.count_nonzero(~is_valid)} of {len(area)} frames; at most {100 * MAX_INVALID:.0f} % may be"
        )
    index = np.arange(len(area))
    return np.interp(index, index[is_valid], area[is_valid])


def frames_of_r_waves(
    frame_times_ms: Sequence[float] | NDArray[Any] | None, r_wave_times_ms: Sequence[float]
) -> list[int]:
    """Return the indices of the frames nearest to the R waves within the clip; none where the frames' times are not known."""
    if frame_times_ms is None or not len(r_wave_times_ms):
        return []
    times = np.asarray(frame_times_ms, dtype=np.float64)
    inside = [t for t in r_wave_times_ms if times[0] <= t <= times[-1]]
    return sorted({int(np.abs(times - t).argmin()) for t in inside})


def _between(area: NDArray[np.float64], triggers: Sequence[int]) -> list[Beat]:
    """Find beats from R wave to R wave, only where the area falls after one: otherwise the R wave or the area is wrong."""
    beats = []
    for first, last in zip(triggers, [*triggers[1:], len(area)]):
        if last - first < 2:
            continue
        end_systole = first + 1 + int(area[first + 1 : last].argmin())
        if area[end_systole] < area[first]:
            beats.append(Beat(first, end_systole, end_systole < len(area) - 1))
    return beats


def _at_minima(area: NDArray[np.float64], change: float, step_ms: float | None) -> list[Beat]:
    """Find beats whose end-systole is a minimum of the area."""
    distance = SHORTEST_BEAT_FRAMES if not step_ms else max(1, round(SHORTEST_BEAT_MS / step_ms))
    walls = np.concatenate([[area.max()], area, [area.max()]])  # so that an end of the clip can also be a minimum
    peaks, _ = find_peaks(-walls, distance=distance, prominence=MIN_PROMINENCE * change)
    beats = []
    begins = 0
    for end_systole in (int(p) - 1 for p in peaks):
        if end_systole > begins:
            end_diastole = begins + int(area[begins:end_systole].argmax())
            if area[end_diastole] - area[end_systole] >= MIN_PROMINENCE * change:
                is_whole = end_diastole > 0 and end_systole < len(area) - 1
                beats.append(Beat(end_diastole, end_systole, is_whole))
        begins = end_systole
    return beats
