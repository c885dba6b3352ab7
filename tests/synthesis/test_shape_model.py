"""Test landmarks, and the shape model on hearts whose distribution is known."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from synboost_monai.heart.anatomy import check_anatomy
from synboost_monai.heart.landmarks import (
    ATRIUM,
    ENDOCARDIUM,
    EPICARDIUM,
    HALF_ATRIUM,
    HALF_ENDOCARDIUM,
    NUM_LANDMARKS,
    LandmarkError,
    draw_landmarks,
    find_landmarks,
)
from synboost_monai.simulation.phantom_anatomy import draw_label_map, draw_patient
from synboost_monai.synthesis import shape_model
from synboost_monai.synthesis.shape_model import (
    Frame,
    HeartCase,
    Pose,
    ShapeModel,
    align,
    decode_atrium,
    draw_in_frame,
    encode_atrium,
    generalisation_mm,
    interpolate,
    pose_in,
    read_case,
)
from synboost_monai.transforms.label_map_array import default_sector_mask

SHAPE = (300, 320)
SPACING_MM = (0.5, 0.5)
VIEW, PHASES = "apical_four_chamber", ("end_diastole", "end_systole")


def heart(width: float = 18.0, length: float = 70.0, atrium: float = 36.0) -> np.ndarray:
    """Return the landmarks of a heart made of half ellipses, base at y = 0: (NUM_LANDMARKS, 2), mm."""
    angle = np.linspace(np.pi, 0, 400)

    def arc(a: float, b: float) -> np.ndarray:
        return np.stack([a * np.cos(angle), -b * np.sin(angle)], 1)

    roof = np.stack([0.9 * width * np.cos(angle), atrium * np.sin(angle)], 1)
    label = draw_polygons(arc(width, length), arc(width + 10, length + 10), roof)
    return find_landmarks(label, SPACING_MM) - [80, 95]


def draw_polygons(cavity: np.ndarray, outer: np.ndarray, atrium: np.ndarray) -> np.ndarray:
    """Draw a label map (300, 320) of 0.5 mm; the origin of the polygons is at (80, 95) mm."""
    from synboost_monai.heart.geometry import fill_polygon

    label_map = np.zeros(SHAPE, np.uint8)
    for polygon, class_index in ((atrium, 3), (outer, 2), (cavity, 1)):
        label_map[fill_polygon((polygon[:, 1] + 95) / 0.5, (polygon[:, 0] + 80) / 0.5, SHAPE)] = class_index
    return label_map


def make_frame(phase: str = "end_diastole") -> Frame:
    return Frame.of_sector(default_sector_mask((320, 390), SPACING_MM), SPACING_MM, VIEW, phase)


@pytest.fixture(scope="module")
def cases() -> list[HeartCase]:
    """Return 60 hearts of one mode: half end-systolic, 5 mm narrower; the width has a standard deviation of 1.5 mm."""
    generator = np.random.default_rng(0)
    base = {width: heart(width) for width in (12.0, 18.0)}
    found = []
    for number in range(60):
        phase = PHASES[number % 2]
        width = 18.0 - 5.0 * (number % 2) + 1.5 * generator.standard_normal()
        shape = base[12.0] + (width - 12.0) / 6.0 * (base[18.0] - base[12.0])
        turn = np.deg2rad(10 + 5 * generator.standard_normal())
        rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        points = shape @ rotation + [generator.normal(0, 4), generator.normal(100, 4)]
        found.append(HeartCase(f"case{number}", points, make_frame(phase), is_cut=False))
    return found


# ---- landmarks


def test_landmarks_lie_at_hinges_apex_corners_and_roof():
    points = heart()
    assert points.shape == (NUM_LANDMARKS, 2)
    endocardium, epicardium, atrium = points[ENDOCARDIUM], points[EPICARDIUM], points[ATRIUM]
    np.testing.assert_allclose(endocardium[[0, HALF_ENDOCARDIUM, -1]], [[-18, 0], [0, -70], [18, 0]], atol=1.2)
    np.testing.assert_allclose(epicardium[[3, len(epicardium) // 2, -4]], [[-28, 0], [0, -80], [28, 0]], atol=1.2)
    np.testing.assert_allclose(atrium[[0, HALF_ATRIUM, -1]], [[-16.2, 0], [0, 36], [16.2, 0]], atol=1.2)


def test_landmarks_are_spread_evenly_between_anchors():
    endocardium = heart()[ENDOCARDIUM]
    steps = np.linalg.norm(np.diff(endocardium, axis=0), axis=1)
    np.testing.assert_allclose(steps[:HALF_ENDOCARDIUM], steps[:HALF_ENDOCARDIUM].mean(), rtol=0.1)


def test_landmarks_follow_position_and_spacing():
    label_map = draw_landmarks(heart() + [80, 95], SHAPE, SPACING_MM)
    moved = np.zeros((340, 360), np.uint8)
    moved[30 : 30 + SHAPE[0], 20 : 20 + SHAPE[1]] = label_map
    shift = find_landmarks(moved, SPACING_MM) - find_landmarks(label_map, SPACING_MM)
    np.testing.assert_allclose(shift, np.broadcast_to([10.0, 15.0], shift.shape), atol=1e-9)
    doubled = find_landmarks(label_map, (1.0, 1.0))
    np.testing.assert_allclose(doubled, 2 * find_landmarks(label_map, SPACING_MM), atol=1e-9)


def test_phantom_label_maps_come_back_from_their_landmarks():
    generator = np.random.default_rng(5)
    for number in range(4):
        patient = draw_patient(generator, is_female=bool(number % 2))
        for view in patient.views.values():
            shape = (round(2 * patient.depth_mm), round(4 * patient.depth_mm * np.sin(patient.half_angle)))
            label_map = draw_label_map(view.contours(number / 3), patient.depth_mm, shape, 0.5)
            again = draw_landmarks(find_landmarks(label_map, SPACING_MM), shape, SPACING_MM)
            assert check_anatomy(again, SPACING_MM, ranges={}) == []
            for class_index in (1, 2, 3):
                first, second = label_map == class_index, again == class_index
                assert 2 * (first & second).sum() / (first.sum() + second.sum()) > 0.97


@pytest.mark.parametrize(
    ("missing", "message"), [([3], "no left atrium"), ([1, 3], "no left ventricular cavity and no left atrium")]
)
def test_a_missing_structure_has_no_landmarks(missing, message):
    label_map = draw_landmarks(heart() + [80, 95], SHAPE, SPACING_MM)
    label_map[np.isin(label_map, missing)] = 0
    with pytest.raises(LandmarkError, match=message):
        find_landmarks(label_map, SPACING_MM)


def test_a_cavity_without_wall_or_opening_has_no_landmarks():
    label_map = np.zeros((60, 60), np.uint8)
    label_map[5:40, 5:50] = 2
    label_map[10:35, 10:45] = 1
    label_map[40:50, 20:40] = 3
    with pytest.raises(LandmarkError, match="no opening"):
        find_landmarks(label_map, (1.0, 1.0))
    label_map[5:40, 5:50] = 1
    label_map[0:2, 0:2] = 2
    with pytest.raises(LandmarkError, match="do not touch as in an apical view"):
        find_landmarks(label_map, (1.0, 1.0))


# ---- frames


def test_a_frame_knows_its_sector_origin_and_depth():
    sector = default_sector_mask((320, 390), SPACING_MM)
    frame = Frame.of_sector(sector, SPACING_MM)
    np.testing.assert_array_equal(frame.sector, sector)
    np.testing.assert_allclose(frame.origin_mm, [194.5 * 0.5, 0], atol=0.5)
    assert frame.depth_mm == pytest.approx(160, abs=1)
    with pytest.raises(ValueError, match="the sector is empty"):
        Frame.of_sector(np.zeros((4, 4)), SPACING_MM)


def test_an_atrium_at_the_sector_s_end_is_told_from_a_whole_one():
    frame = make_frame()
    whole = draw_in_frame(heart() + [0, 100], frame)
    assert not read_case("a", whole, frame).is_cut
    cut = draw_in_frame(heart() + [0, 135], frame)
    assert read_case("b", cut, frame).is_cut
    assert not cut[~frame.sector].any() or set(np.unique(cut[~frame.sector])) <= {0, 1, 2}
    beyond = np.zeros(frame.shape, np.uint8)
    beyond[:, :200] = whole[:, 190:390]  # the border runs through the ventricle
    with pytest.raises(LandmarkError):
        read_case("c", beyond, frame)


# ---- the model


def test_alignment_takes_out_size_direction_and_place(cases):
    points = heart()
    turn = np.deg2rad(25)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    shapes, poses = align(np.stack([points, 1.5 * points @ rotation + [7, -3]]))
    np.testing.assert_allclose(shapes[0], shapes[1], atol=1e-9)
    assert poses[1].log_size - poses[0].log_size == pytest.approx(np.log(1.5))
    assert np.rad2deg(poses[1].angle - poses[0].angle) == pytest.approx(25)
    for pose, shape, placed in zip(poses, shapes, (points, 1.5 * points @ rotation + [7, -3])):
        np.testing.assert_allclose(pose.place(shape), placed, atol=1e-9)
        np.testing.assert_allclose(pose.unplace(placed), shape, atol=1e-9)


def test_atria_come_back_from_their_numbers(cases):
    shapes, _ = align(np.stack([case.points for case in cases[:4]]))
    scale = np.array([0.8, 0.4])
    numbers = encode_atrium(shapes[:, ATRIUM], scale)
    assert numbers.shape == (4, 2 * (ATRIUM.stop - ATRIUM.start) + 5)
    for one, shape in zip(numbers, shapes):
        np.testing.assert_allclose(decode_atrium(one, scale), shape[ATRIUM], atol=1e-9)


def test_a_smaller_atrium_is_the_same_outline(cases):
    scale = np.array([0.8, 0.4])
    atrium = np.stack([heart()[ATRIUM], 0.5 * heart()[ATRIUM]]) / 40
    first, second = encode_atrium(atrium, scale)
    np.testing.assert_allclose(first[5:], second[5:], atol=1e-9)
    weight = np.sqrt(ATRIUM.stop - ATRIUM.start)
    np.testing.assert_allclose((first - second)[[2, 4]], np.log(2) * weight * scale, atol=1e-9)


def test_one_way_to_vary_gives_one_mode(cases):
    model = ShapeModel.fit(cases)
    assert model.classes == ((VIEW, "end_diastole"), (VIEW, "end_systole"))
    assert (
        model.eigenvalues[0] / model.eigenvalues.sum() > 0.8 and len(model.eigenvalues) <= 3
    )  # turning to the mean bends it a little
    np.testing.assert_allclose(model.modes @ model.modes.T, np.eye(len(model.modes)), atol=1e-9)
    assert model.provenance["num_cases"] == model.provenance["num_whole_atria"] == 60


def test_drawn_hearts_are_distributed_as_the_cases(cases):
    model = ShapeModel.fit(cases)
    samples = [model.sample(np.random.default_rng(seed)) for seed in range(400)]

    def widths(all_points: list[np.ndarray], phases: list[str], phase: str) -> np.ndarray:
        hinges = np.array([p[[0, ENDOCARDIUM.stop - 1]] for p, f in zip(all_points, phases) if f == phase])
        return np.linalg.norm(hinges[:, 0] - hinges[:, 1], axis=1) / 2

    drawn_phases = [str(model.frames[s.frame_index].phase) for s in samples]
    for phase in PHASES:
        real = widths([c.points for c in cases], [str(c.frame.phase) for c in cases], phase)
        drawn = widths([s.points for s in samples], drawn_phases, phase)
        assert drawn.mean() == pytest.approx(real.mean(), abs=0.8)
        assert 0.6 * real.std() < drawn.std() < 1.6 * real.std()
    angles = np.rad2deg([s.pose.angle for s in samples])
    assert angles.std() == pytest.approx(np.rad2deg(np.std([pose.angle for pose in align_all(cases)])), rel=0.2)
    assert np.abs(np.stack([s.coefficients for s in samples])).max() <= 3.0


def align_all(cases: list[HeartCase]) -> list[Pose]:
    return align(np.stack([case.points for case in cases]))[1]


def test_ventricles_of_cut_cases_count_and_their_atria_do_not(cases):
    def cut(case: HeartCase) -> HeartCase:
        points = case.points.copy()
        top = points[ATRIUM][:, 1].min()
        points[ATRIUM, 1] = np.minimum(points[ATRIUM, 1], top + 12)  # most of the atrium is gone
        return HeartCase(case.name, points, case.frame, is_cut=True)

    half = [cut(case) if number % 4 > 1 else case for number, case in enumerate(cases)]
    whole, partly = ShapeModel.fit(cases), ShapeModel.fit(half)
    assert partly.provenance["num_whole_atria"] == 30
    np.testing.assert_allclose(partly.mean, whole.mean, atol=0.02)
    np.testing.assert_allclose(partly.eigenvalues[0], whole.eigenvalues[0], rtol=0.15)
    assert abs(partly.modes[0] @ whole.modes[0]) > 0.97
    all_cut = ShapeModel.fit([cut(case) for case in cases])  # then there is nothing better
    assert all_cut.provenance["num_whole_atria"] == 60


def test_no_variance_gives_the_mean_of_the_class(cases):
    model = ShapeModel.fit(cases)
    sample = model.sample(np.random.default_rng(1), variance_scale=0.0)
    frame = model.frames[sample.frame_index]
    expected = model.shape(np.zeros(1), model.classes.index((frame.view, frame.phase)), sample.pose.log_size)
    np.testing.assert_allclose(sample.pose.unplace(sample.points), expected, atol=1e-9)
    assert not sample.coefficients.any()


def test_a_class_of_one_case_is_not_given_away(cases):
    lonely = HeartCase(
        "lonely", cases[1].points, Frame.of_sector(cases[1].frame.sector, SPACING_MM, "other", None), False
    )
    model = ShapeModel.fit([*cases[::2], lonely])
    shape = pose_in(lonely.points, model.mean).unplace(lonely.points)
    mean = model.shape(np.zeros(0), model.classes.index(("other", None)))
    assert (
        np.linalg.norm(shape - mean, axis=1).mean()
        > 0.3
        * np.linalg.norm(shape - model.shape(np.zeros(0), model.classes.index((VIEW, "end_diastole"))), axis=1).mean()
    )


def test_interpolation_is_between_the_two(cases):
    shapes, poses = align(np.stack([case.points for case in cases[:2]]))
    for weight, case in ((0.0, cases[0]), (1.0, cases[1])):
        np.testing.assert_allclose(interpolate(shapes, poses, weight), case.points, atol=1e-9)
    middle = interpolate(shapes, poses, 0.5)
    np.testing.assert_allclose(
        middle[: ATRIUM.start].mean(0), (cases[0].points + cases[1].points)[: ATRIUM.start].mean(0) / 2, atol=1e-9
    )


def test_generalisation_is_small_where_one_mode_explains_all(cases):
    distances = generalisation_mm(cases, [case.name for case in cases])
    assert len(distances) == 60 and distances.max() < 0.2
    assert len(generalisation_mm(cases[:5], ["same"] * 5)) == 0


def test_a_saved_model_draws_the_same(cases, tmp_path: Path):
    model = ShapeModel.fit(cases, provenance={"data_sha256": "abc"})
    path = model.save(tmp_path / "deep" / "model.npz")
    loaded = ShapeModel.load(path)
    assert loaded.provenance == model.provenance and loaded.classes == model.classes
    first, second = (m.sample(np.random.default_rng(4)) for m in (model, loaded))
    np.testing.assert_array_equal(first.points, second.points)
    frame = loaded.frames[second.frame_index]
    np.testing.assert_array_equal(frame.sector, model.frames[first.frame_index].sector)
    assert (frame.view, frame.phase) == (VIEW, model.frames[first.frame_index].phase)
    with np.load(path, allow_pickle=False) as content:
        assert all(content[name].dtype != object for name in content.files)
        numbers = {name: content[name] for name in content.files}
    assert not any(  # no case's contour is in the file
        array.ndim > 1 and array.shape[0] == len(cases) and array.shape[-1] >= NUM_LANDMARKS
        for array in numbers.values()
    )


def test_bad_files_and_few_cases_are_refused(cases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(FileNotFoundError, match="no such shape model"):
        ShapeModel.load(tmp_path / "none.npz")
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="not a shape model"):
        ShapeModel.load(tmp_path / "bad.npz")
    np.savez(tmp_path / "bad.npz", facts=np.array([{"format": 1}], dtype=object))
    with pytest.raises(ValueError, match=r"not a shape model \(it holds code\)"):
        ShapeModel.load(tmp_path / "bad.npz")
    with (
        zipfile.ZipFile(tmp_path / "bad.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("mean.npy", "w") as file,
    ):
        file.write(bytes(2_000_000))
    monkeypatch.setattr(shape_model, "_MAX_BYTES", 1_000_000)
    with pytest.raises(ValueError, match="unpacks to 2,000,000 bytes, and no shape model has more than 1,000,000"):
        ShapeModel.load(tmp_path / "bad.npz")
    with pytest.raises(ValueError, match="4 usable label maps; a shape model needs at least 5"):
        ShapeModel.fit(cases[:4])
    with pytest.raises(ValueError, match="explained_variance is 0"):
        ShapeModel.fit(cases, explained_variance=0)
