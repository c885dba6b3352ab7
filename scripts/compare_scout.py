"""Compare the frames that a segmenter measures with and without a scout (`synboost dicom --scout`), on simulated clips.

    python scripts/compare_scout.py --checkpoint_path model.pt [--scout shipped] [--num_clips 50] [--seed 991]

Each clip shows two whole beats that are alike, so frames are compared by their place in the beat. It prints a line for each clip, and
the counts.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from synboost_monai.dicom.reading.read import ClipFacts
from synboost_monai.dicom.reading.regions import Region
from synboost_monai.hospital.clip import SegmentedClip, segment_clip
from synboost_monai.hospital.model import SHIPPED, EchoSegmenter
from synboost_monai.hospital.phantom_studies import systole_at
from synboost_monai.simulation.simulator import simulate
from synboost_monai.structures import STRUCTURES

NUM_FRAMES, BEAT, FRAME_MS, START = 44, 20, 50.0, 0.6
"""Frames of a clip and of a beat, time between frames, and where in the beat a clip begins."""


def clip_of(seed: int, number: int, segmenters: Sequence[EchoSegmenter]) -> list[SegmentedClip]:
    """Return what each segmenter finds in a simulated clip."""
    moments = tuple(float(systole_at((i / BEAT + START) % 1)) for i in range(NUM_FRAMES))
    echo = simulate(seed, number, longer_side=160, systole=moments)
    rows, columns = echo.images.shape[1:]
    facts = ClipFacts(
        *("1.2", "1.2.3", "1.3", rows, columns, NUM_FRAMES),
        region=Region(0, 0, rows, columns, spacing_mm=(echo.spacing_mm, echo.spacing_mm), problem=None),
        frame_times_ms=tuple(FRAME_MS * i for i in range(NUM_FRAMES)),
        heart_rate=None,
        r_wave_times_ms=(),
        view=echo.attributes["view"],
        sex=None,
        age=None,
        decoder="none",
    )

    def read(indices: Sequence[int] | None) -> Iterator[NDArray[np.uint8]]:
        yield echo.images if indices is None else echo.images[list(indices)]

    return [segment_clip(segmenter, facts, read) for segmenter in segmenters]


def mean_dice(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Return the mean Dice of two label maps over the structures."""
    pairs = [(first == s.class_index, second == s.class_index) for s in STRUCTURES]
    return float(np.mean([2 * np.sum(a & b) / max(np.sum(a) + np.sum(b), 1) for a, b in pairs]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint_path", required=True, help="weights of echo_cris that do without, or with, a scout"
    )
    parser.add_argument("--scout", default=SHIPPED)
    parser.add_argument("--num_clips", type=int, default=50)
    parser.add_argument("--seed", type=int, default=991)
    options = parser.parse_args()
    scouts = (None, options.scout)
    segmenters = [EchoSegmenter("echo_cris", options.checkpoint_path, {"device": "cpu"}, scout) for scout in scouts]
    distances, overlaps, num_without = [], [], 0
    for number in range(options.num_clips):
        alone, scouted = clip_of(options.seed, number, segmenters)
        if alone.beat is None or scouted.beat is None:
            num_without += 1
            print(
                f"{number}: a beat was found {'alone' if alone.beat else 'by the scout' if scouted.beat else 'by neither'}"
            )
            continue
        pairs = [
            (alone.beat.end_diastole, scouted.beat.end_diastole),
            (alone.beat.end_systole, scouted.beat.end_systole),
        ]
        distances.append(max(abs((a - b + BEAT // 2) % BEAT - BEAT // 2) for a, b in pairs))
        overlaps += [mean_dice(alone.label_maps[a], scouted.label_maps[b]) for a, b in pairs]
        print(f"{number}: alone and with the scout, end-diastole {pairs[0]}, end-systole {pairs[1]}")
    found = np.array(distances)
    print(
        f"{options.num_clips} simulated clips, seed {options.seed}: in {num_without} one or both found no beat; of the others the same "
        f"frames in {np.sum(found == 0)}, within one in {np.sum(found <= 1)} of {len(found)}; mean Dice between both "
        f"{100 * np.mean(overlaps):.1f} %"
    )


if __name__ == "__main__":
    main()
