"""Test that beats are found by the area, or by the R waves."""

from __future__ import annotations

import numpy as np
import pytest

from synboost_monai.hospital.beats import Beat, NoBeatError, find_beats

TIMES = np.arange(120) * 1000 / 30
"""Four seconds at 30 frames a second."""


def area(period_ms: float = 900.0, change: float = 0.25, noise: float = 0.0) -> np.ndarray:
    """Return a cosine: end-diastole at 0, 900 ms, ..., end-systole in the middle between."""
    clean = 1000 * (1 - change * (1 - np.cos(2 * np.pi * TIMES / period_ms)) / 2)
    return clean + np.random.default_rng(0).normal(0, noise, len(TIMES))


def test_every_whole_beat_is_found() -> None:
    beats = find_beats(area(), TIMES)
    assert [b for b in beats if b.is_whole] == [Beat(27, 40, True), Beat(54, 67, True), Beat(81, 94, True)]
    assert beats[0] == Beat(
        0, 13, False
    )  # its end-diastole is the clip's first frame: there may be a larger one before


def test_noise_moves_a_beat_by_two_frames_at_most() -> None:
    expected = [b for b in find_beats(area(), TIMES) if b.is_whole]
    found = [b for b in find_beats(area(noise=15), TIMES) if b.is_whole]
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert abs(a.end_diastole - b.end_diastole) <= 2 and abs(a.end_systole - b.end_systole) <= 2


def test_without_times_beats_are_found_by_frames() -> None:
    assert find_beats(area()) == find_beats(area(), TIMES)


def test_r_wave_after_which_the_area_only_grows_begins_no_beat() -> None:
    falls = [float(TIMES[27]), float(TIMES[40]) + 60]  # end-diastole; and after end-systole, in a clip that ends soon
    (beat,) = find_beats(area()[:50], TIMES[:50], falls)
    assert (beat.end_diastole, beat.end_systole) == (27, 40)


def test_r_waves_say_where_end_diastole_is() -> None:
    found = find_beats(area(), TIMES, [100, 1000, 1900, 99_999])
    assert [b.end_diastole for b in found] == [3, 30, 57]
    assert found[0].end_systole == 13


def test_half_a_beat_is_one_that_is_not_whole() -> None:
    half = 1000 - 125 * (1 - np.cos(np.pi * np.arange(20) / 19))
    assert find_beats(half) == [Beat(0, 19, False)]


def test_frames_without_a_ventricle_are_bridged() -> None:
    gaps = area()
    gaps[[5, 6, 33, 60]] = 0
    gaps[90] = np.nan
    found = [b.end_systole for b in find_beats(gaps, TIMES) if b.is_whole]
    assert np.abs(np.array(found) - [40, 67, 94]).max() <= 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([900.0], "one frame has no beat"),
        ([1000.0] * 30, "changes by 0 % only; at least 8 %"),
        ([0.0] * 20 + [1000.0] * 20, "no left ventricle was found in 20 of 40 frames"),
        (list(np.linspace(500, 1000, 30)), "shows no contraction"),
    ],
)
def test_what_is_no_beat_says_why(values: list[float], message: str) -> None:
    with pytest.raises(NoBeatError, match=message):
        find_beats(values)


def test_times_must_fit() -> None:
    with pytest.raises(ValueError, match="120 areas and 119 times"):
        find_beats(area(), TIMES[1:])


def test_beats_of_few_frames_do_not_overlap() -> None:
    """Beats within each other's reach once shared an end-diastole, and the heart rate divided by no time at all."""
    generator = np.random.default_rng(0)
    for _ in range(300):
        num_frames = int(generator.integers(6, 40))
        beating = 30 * np.cos(np.arange(num_frames) * generator.uniform(0.3, 2.5))
        times = np.arange(num_frames) * 50.0
        r_waves = sorted(generator.uniform(0, times[-1], int(generator.integers(0, 4))))
        try:
            found = find_beats(100 + beating + generator.normal(0, 20, num_frames), times, r_waves)
        except NoBeatError:
            continue
        order = [index for beat in found for index in (beat.end_diastole, beat.end_systole)]
        assert order == sorted(set(order))
