"""Test the measures of a study against the truth of phantom hearts that beat several times, each time with another force."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from synboost_monai.dicom.reading.read import ClipFacts
from synboost_monai.dicom.reading.regions import Region
from synboost_monai.heart.volumes import _slice_areas
from synboost_monai.hospital.clip import SegmentedClip, segment_clip
from synboost_monai.hospital.measures import BEAT_AT_END, LARGER_SYSTOLE, NEEDS_REVIEW, StudyMeasure, measure_study
from synboost_monai.hospital.phantom_studies import systole_at
from synboost_monai.hospital.results import report_measurements, study_results
from synboost_monai.quantities import QUANTITIES
from synboost_monai.records import VIEWS
from synboost_monai.simulation.phantom import draw_phantom_patient
from synboost_monai.simulation.phantom_anatomy import PatientAnatomy, ViewAnatomy, draw_label_map
from tests.hospital.conftest import TruthModel, key_of

FORCES = (1.0, 0.65, 0.85)
"""How far each whole beat contracts, as a share of the first."""
NUM_FRAMES, FRAME_MS, PX = 66, 50.0, 240
FRAMES_A_BEAT = 20
PATIENTS = [draw_phantom_patient(seed, 1).anatomy for seed in (3, 8)]
METHOD = {"4CH": "four_chamber", "2CH": "two_chamber"}


def force_at(beats: float) -> float:
    return FORCES[min(max(int(beats), 0), len(FORCES) - 1)]


def make_clips(anatomy: PatientAnatomy, sex: str | None = "female", **body: float | None) -> dict[str, SegmentedClip]:
    """Return both views of a heart of three whole beats, which begins in a diastole and ends in a systole, with its true label maps."""
    spacing = anatomy.depth_mm / PX
    shape = (PX, int(2 * PX * math.sin(anatomy.half_angle)) + 1)
    moments = [b % 1.0 if b < 1 else b - 1 for b in (0.7 + i / FRAMES_A_BEAT for i in range(NUM_FRAMES))]
    systoles = [systole_at(m) * (1.0 if i < 0.3 * FRAMES_A_BEAT else force_at(m)) for i, m in enumerate(moments)]
    clips = {}
    for name, view in anatomy.views.items():
        drawn = {s: draw_label_map(view.contours(s), anatomy.depth_mm, shape, spacing) for s in set(systoles)}
        maps = np.stack([drawn[s] for s in systoles])
        facts = ClipFacts(
            *("1.2.840.10008.5.1.4.1.1.3.1", f"1.2.{len(clips)}", "1.3", *shape, NUM_FRAMES),
            region=Region(0, 0, *shape, spacing_mm=(spacing, spacing), problem=None),
            frame_times_ms=tuple(FRAME_MS * i for i in range(NUM_FRAMES)),
            heart_rate=None,
            r_wave_times_ms=(),
            view=VIEWS[name],
            sex=sex,
            age=60,
            decoder="none",
            **body,
        )

        def read(indices: list[int] | None, frames: NDArray[np.uint8] = maps):  # type: ignore[no-untyped-def]
            yield frames if indices is None else frames[list(indices)]

        clips[name] = segment_clip(TruthModel({key_of(m): m for m in maps}), facts, read)  # the frames are the maps
    return clips


@pytest.fixture(scope="module")
def hearts() -> list[tuple[PatientAnatomy, dict[str, SegmentedClip]]]:
    return [(anatomy, make_clips(anatomy, height_m=1.7, weight_kg=70.0)) for anatomy in PATIENTS]


def by_name(measures: list[StudyMeasure]) -> dict[tuple[str, str, int | None], StudyMeasure]:
    return {(m.measure, m.method, m.beat): m for m in measures}


def plane_ml(view: ViewAnatomy, systole: float) -> float:
    """Return the true volume of one plane: pi / 4 L W^2 times the mean of g^2."""
    length, width = (pair[0] + (pair[1] - pair[0]) * systole for pair in (view.length_mm, view.width_mm))
    u = (np.arange(4000) + 0.5) / 4000
    return math.pi / 4 * length * width**2 * float(np.mean(view.profile(u**2) ** 2 * 2 * u)) / 1000


def true_mass_g(anatomy: PatientAnatomy) -> float:
    """Return the mass by the phantom's contours at end-diastole: elliptic disks of the epicardium, minus the cavity in closed form."""
    disks = []
    for view in anatomy.views.values():
        up = -np.array([math.sin(view.tilt[0]), math.cos(view.tilt[0])])
        from_base = view.contours(0.0).epicardium - (np.array(view.apex_mm[0]) - view.length_mm[0] * up)
        z, w = from_base @ up, from_base @ np.array([-up[1], up[0]])
        disks.append((z.max(), _slice_areas(z, w, np.linspace(0.0, z.max(), 501)) * 500 / z.max()))
    height = max(length for length, _ in disks) / 500
    return 1.05 * (math.pi / 4 * float(disks[0][1] @ disks[1][1]) * height / 1000 - anatomy.volume_ml(0.0))


def test_each_beat_has_its_own_true_ejection_fraction(hearts) -> None:  # type: ignore[no-untyped-def]
    for anatomy, clips in hearts:
        found = by_name(measure_study(clips))
        for view, method in METHOD.items():
            truth = [100 * (1 - plane_ml(anatomy.views[view], f) / plane_ml(anatomy.views[view], 0.0)) for f in FORCES]
            whole = [n for n, beat in enumerate(clips[view].beats, 1) if beat.is_whole]
            assert len(whole) == len(FORCES)
            fractions = [found["ejection_fraction", method, n].value for n in whole]
            assert fractions == pytest.approx(truth, abs=3)
            for n, force in zip(whole, FORCES):
                volume = found["end_systolic_volume_ml", method, n].value
                assert volume == pytest.approx(plane_ml(anatomy.views[view], force), rel=0.05)
            assert found["ejection_fraction_mean", method, None].value == pytest.approx(np.mean(fractions))
            assert found["ejection_fraction_sd", method, None].value == pytest.approx(np.std(fractions, ddof=1))
            assert found["ejection_fraction_mean", method, None].basis == "3 whole beats"
            assert found["heart_rate", method, None].value == pytest.approx(
                60_000 / (FRAMES_A_BEAT * FRAME_MS), rel=0.05
            )


def test_volumes_and_mass_are_those_of_the_phantom(hearts) -> None:  # type: ignore[no-untyped-def]
    for anatomy, clips in hearts:
        found = by_name(measure_study(clips))
        for name, systole in (("end_diastolic_volume_ml", 0.0), ("end_systolic_volume_ml", 0.85)):  # the median beat
            assert found[name, "biplane", None].value == pytest.approx(anatomy.volume_ml(systole), rel=0.05)
        assert found["mass_g", "biplane", None].value == pytest.approx(true_mass_g(anatomy), rel=0.1)
        surface = 0.007184 * 70**0.425 * 170**0.725
        for name, of in (("atrial_volume_index", "end_systolic_atrial_volume_ml"), ("mass_index", "mass_g")):
            assert found[name, "biplane", None].value == pytest.approx(found[of, "biplane", None].value / surface)


def test_the_curve_has_the_true_volume_of_every_frame(hearts) -> None:  # type: ignore[no-untyped-def]
    anatomy, clips = hearts[0]
    curve = clips["4CH"].volumes_ml
    assert curve is not None and curve.shape == (NUM_FRAMES,)
    assert curve.max() == pytest.approx(plane_ml(anatomy.views["4CH"], 0.0), rel=0.05)
    assert curve.min() == pytest.approx(plane_ml(anatomy.views["4CH"], 1.0), rel=0.05)


def test_a_beat_at_an_end_of_the_clip_has_no_ejection_fraction(hearts) -> None:  # type: ignore[no-untyped-def]
    _, clips = hearts[0]
    clip = replace_beats(clips["4CH"], [replace(clips["4CH"].beats[0], is_whole=False), *clips["4CH"].beats[1:]])
    found = by_name(measure_study({"a": clip}))
    first = found["ejection_fraction", "four_chamber", 1]
    assert (first.value, first.reason, first.sources) == (None, BEAT_AT_END, ())
    assert found["ejection_fraction_mean", "four_chamber", None].basis == "2 whole beats"


def replace_beats(clip: SegmentedClip, beats: list) -> SegmentedClip:  # type: ignore[type-arg]
    return replace(clip, beats=tuple(beats), beat=beats[-1])


def test_only_the_first_beats_of_many_are_judged_and_measured(hearts, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("synboost_monai.hospital.clip.MAX_BEATS", 1)
    clips = make_clips(hearts[0][0])
    whole = [n for n, beat in enumerate(clips["4CH"].beats, 1) if beat.is_whole]
    measured = {whole[0], clips["4CH"].beats.index(clips["4CH"].beat) + 1}
    assert set(clips["4CH"].measured_beats) == measured and len(clips["4CH"].doubts) == 2 * len(measured)
    found = by_name(measure_study(clips))
    with_value = {n for (name, method, n), m in found.items() if method == "four_chamber" and n and m.value is not None}
    assert with_value == measured and len(whole) == 3


def test_a_beat_that_grows_has_no_ejection_fraction(hearts) -> None:  # type: ignore[no-untyped-def]
    _, clips = hearts[0]
    first = clips["4CH"].beats[0]
    turned = replace(first, end_diastole=first.end_systole, end_systole=first.end_diastole)
    found = by_name(measure_study({"a": replace_beats(clips["4CH"], [turned, *clips["4CH"].beats[1:]])}))
    assert found["ejection_fraction", "four_chamber", 1].reason == LARGER_SYSTOLE


def test_a_doubted_contour_marks_every_number_that_it_enters_and_no_other(hearts) -> None:  # type: ignore[no-untyped-def]
    _, clips = hearts[0]
    clip = clips["4CH"]
    other = next(n for n, beat in clip.measured_beats.items() if beat != clip.beat)
    frame = clip.measured_beats[other].end_systole
    doubted = replace(clip, doubts={**clip.doubts, frame: {**clip.doubts[frame], "verdict": "review"}})
    measures = measure_study({"4CH": doubted, "2CH": clips["2CH"]})
    marked = {(m.measure, m.method, m.beat) for m in measures if m.is_doubted}
    assert marked == {
        ("end_systolic_volume_ml", "four_chamber", other),
        ("ejection_fraction", "four_chamber", other),
        ("ejection_fraction_mean", "four_chamber", None),
        ("ejection_fraction_sd", "four_chamber", None),
    }
    instances = {name: (c.facts.sop_class_uid, c.facts.sop_instance_uid) for name, c in clips.items()}
    for m in report_measurements(measures, instances, "female"):
        assert (f"In doubt: {NEEDS_REVIEW}" in m.comments) == ((m.quantity, m.method, m.beat) in marked)
    results = study_results(
        "study", "1.3", {}, {**clips, "4CH": doubted}, {n: i for n, (_, i) in instances.items()}, measures
    )
    shown = {(m["measure"], m["method"], m["beat"]) for m in results["measures"] if m["needs_review"]}
    assert shown == marked and results["verdict"] == "accept"  # the beat that stands for the clip is not in doubt

    frame = clip.beat.end_diastole
    doubted = replace(clip, doubts={**clip.doubts, frame: {**clip.doubts[frame], "verdict": "review"}})
    marked = {(m.measure, m.method) for m in measure_study({"4CH": doubted, "2CH": clips["2CH"]}) if m.is_doubted}
    assert {("mass_index", "biplane"), ("ejection_fraction", "biplane"), ("heart_rate", "four_chamber")} <= marked
    assert (
        not {("end_systolic_volume_ml", "biplane"), ("mass_g", "two_chamber"), ("body_surface_m2", "header")} & marked
    )


def test_an_index_needs_a_plausible_body(hearts) -> None:  # type: ignore[no-untyped-def]
    _, clips = hearts[0]
    facts = {name: clip.facts for name, clip in clips.items()}
    for bodies, reason in (
        ({"4CH": (None, 70.0), "2CH": (None, 70.0)}, "the header gives no height"),
        ({"4CH": (170.0, 70.0), "2CH": (170.0, 70.0)}, "the header's height is not plausible"),
        ({"4CH": (1.7, 70.0), "2CH": (1.7, 90.0)}, "the headers of the clips disagree about height or weight"),
    ):
        changed = {
            n: replace(clips[n], facts=replace(facts[n], height_m=h, weight_kg=w)) for n, (h, w) in bodies.items()
        }
        found = by_name(measure_study(changed))
        surface, index = found["body_surface_m2", "header", None], found["atrial_volume_index", "biplane", None]
        assert surface.value is None and surface.reason.startswith(reason)
        assert index.value is None and index.reason == f"body surface area: {surface.reason}"
        assert found["end_systolic_atrial_volume_ml", "biplane", None].value is not None


def test_heart_rate_comes_from_beats_or_r_waves_or_the_header_and_says_so(hearts) -> None:  # type: ignore[no-untyped-def]
    _, clips = hearts[0]
    clip = clips["4CH"]

    def rate(**changes) -> tuple[float | None, str]:  # type: ignore[no-untyped-def]
        found = by_name(measure_study({"a": replace(clip, facts=replace(clip.facts, **changes))}))
        m = found["heart_rate", "four_chamber", None]
        return m.value, m.basis or m.reason

    value, basis = rate(heart_rate=90.0)
    assert (
        value == pytest.approx(60, rel=0.05) and basis.startswith("frame times of ") and basis.endswith("end-diastoles")
    )
    assert rate(r_wave_times_ms=(100.0, 900.0, 1700.0)) == (pytest.approx(75), "frame times of 3 R waves")
    assert rate(frame_times_ms=None, heart_rate=90.0) == (90.0, "header (Heart Rate)")
    assert rate(frame_times_ms=None)[0] is None


def test_reference_ranges_depend_on_sex_where_it_is_known() -> None:
    volume, atrium = QUANTITIES["end_diastolic_volume_ml"], QUANTITIES["atrial_volume_index"]
    assert volume.reference is not None and atrium.reference is not None
    assert (volume.reference.of("female"), volume.reference.of("male")) == ((46, 106), (62, 150))
    assert volume.reference.of(None) is None and atrium.reference.of(None) == (16, 34)
    assert volume.reference_words(None) == "♀ 46–106  ♂ 62–150"
    assert volume.is_outside(120, "female") and not volume.is_outside(120, "male") and not volume.is_outside(999, None)
    for quantity in QUANTITIES.values():
        if quantity.reference is not None:
            assert all(low < high for low, high in (quantity.reference.female, quantity.reference.male))
