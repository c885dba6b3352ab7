"""Test that the page's segmentation is that of `synboost run BUNDLE inference`, pixel for pixel, and that its description is right."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from synboost_monai.bundle_run import run_bundle
from synboost_monai.dicom.writing.clip import write_clip
from synboost_monai.heart.doubt import DoubtAssessor, segmentation_evidence, view_evidence
from synboost_monai.records import EchoRecord
from synboost_monai.serving.demo.findings import reasons, structure_findings, ventricle_measures, view_in_words
from synboost_monai.serving.demo.pictures import image_picture, mask_picture, spread_picture
from synboost_monai.serving.demo.segmenting import OpenImage, Segmentation, Segmenter, write_segmentation
from synboost_monai.serving.demo.sources import Phantom, Source, draw_phantom, file_label_source, file_source
from synboost_monai.structures import MYOCARDIUM, STRUCTURES
from synboost_monai.synthesis.writers import write_nifti
from synboost_monai.transforms import load_echo
from tests.clips import write_clip as write_film

SEGMENTER = {"preset": "tiny", "image_size": 32, "device": "cpu", "threshold": 0.45}
"""Keys of inference.yaml; a random network is just above or below one half."""
VIEW, PHASE = "apical_four_chamber", "end_systole"


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Phantom:
    return draw_phantom(3, VIEW, PHASE, tmp_path_factory.mktemp("phantom"), image_height=96)


@pytest.fixture(scope="module")
def segmenters(weights: dict[str, Path]) -> dict[str, Segmenter]:
    return {name: Segmenter(name, str(weights[name]), SEGMENTER) for name in ("echo_cris", "echo_clipseg")}


@pytest.fixture(scope="module")
def files(phantom: Phantom, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the phantom as an image of each kind, and two clips."""
    folder = tmp_path_factory.mktemp("files")
    image = load_echo(phantom.image_path)[0].numpy()[0].astype(np.uint8)
    clip = np.stack([image, image[:, ::-1], np.roll(image, 5, axis=0)])
    Image.fromarray(image).save(folder / "still.png")
    write_nifti(image, (0.9, 1.1), folder / "still_2CH_ED.nii.gz")
    scaled = clip.T.astype(np.float32) * 3 - 100
    nib.save(nib.Nifti1Image(scaled, np.diag([-1.1, -0.9, 40.0, 1.0])), folder / "clip.nii")
    record = EchoRecord(folder / "clip.dcm", None, "Somebody^Else", VIEW, sex="female", age=51)
    write_clip(record, clip, (0.9, 0.9), study="s", frame_time_ms=40.0)
    if find_spec("av"):
        write_film(folder / "film.avi", clip)
        (folder / "list.mp4").write_text("#EXTM3U\nfile:///etc/passwd\n")
    return {path.name: path for path in folder.iterdir()}


def opened(segmenter: Segmenter, path: Path) -> OpenImage:
    """Open a file of a folder whose files may be opened."""
    return segmenter.open(file_source(path, [path.parent]))


@pytest.mark.parametrize(
    ("bundle", "name", "prompt", "frame_index"),
    [
        ("echo_cris", "still_2CH_ED.nii.gz", "", 0),
        ("echo_cris", "still.png", "left atrium", 0),
        ("echo_cris", "clip.nii", "", 2),
        ("echo_clipseg", "clip.dcm", "", 1),
        ("echo_clipseg", "film.avi", "", 2),
    ],
)
def test_segmentation_equals_the_bundles_own_run(
    segmenters: dict[str, Segmenter],
    weights: dict[str, Path],
    files: dict[str, Path],
    tmp_path: Path,
    bundle: str,
    name: str,
    prompt: str,
    frame_index: int,
) -> None:
    if name == "film.avi":
        pytest.importorskip("av")
    image = opened(segmenters[bundle], files[name])
    found = segmenters[bundle].segment(image, prompt, frame_index=frame_index)
    is_clip = len(image.frames) > 1
    places = {"checkpoint_path": weights[bundle], "dataset_dir": files[name], "output_dir": tmp_path / "run"}
    options = {"prompt": prompt, "sequences": is_clip, "output_format": "nifti"}
    run_bundle(bundle, "inference", {**SEGMENTER, **places, **options})
    (record_path,) = (tmp_path / "run").glob("*.json")
    record = json.loads(record_path.read_text())
    written = load_echo(tmp_path / "run" / record["label_map"], sequences=True)[0].numpy()
    assert np.array_equal(found.full_label_map, written[frame_index])
    assert found.label_map.shape == found.grey.shape and found.label_map.any()
    said = record["frames"][frame_index] if is_clip else record
    for key in ("structures", "predicted_dice", "verdict", "reasons", "anatomy", "calibrated"):
        assert json.loads(json.dumps(found.doubt[key])) == said[key], key
    if prompt:
        assert all(text.startswith("Left atrium cavity") for text in found.prompts)
        assert said["prompt"] == found.doubt["prompt"] and said["prompt"]["reading"] == "read as left atrium"
    spread = nib.load(tmp_path / "run" / record["spread"]).get_fdata().T
    of_frame = spread[frame_index] if is_clip else spread
    rows, columns = np.nonzero(of_frame)
    inside = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert found.spread is not None and found.spread.max() > 0
    assert np.abs(of_frame[inside].max() - found.spread.max()) <= 5e-4  # rounded in the file
    assert len(found.prompts) == (2 if prompt else 6)  # in both phrasings

    # what is offered for download holds the same pixels
    path = write_segmentation(found, tmp_path)
    again = load_echo(path)[0].numpy()[0]
    assert np.array_equal(again, found.full_label_map)
    suffix = f"_frame{frame_index + 1:03d}" if is_clip else ""
    assert path.name == f"{image.name}{suffix}_label_map.nii.gz"


def test_a_clip_is_known_by_its_content(segmenters: dict[str, Segmenter], files: dict[str, Path]) -> None:
    pytest.importorskip("av")
    film = opened(segmenters["echo_cris"], files["film.avi"])
    assert len(film.frames) == 3 and film.spacing_mm is None
    with pytest.raises(ValueError, match="list.mp4: its content is neither AVI nor MP4"):
        opened(segmenters["echo_cris"], files["list.mp4"])


def test_only_what_prompts_say_is_taken_from_a_header(segmenters: dict[str, Segmenter], files: dict[str, Path]) -> None:
    segmenter = segmenters["echo_clipseg"]
    clip = opened(segmenter, files["clip.dcm"])
    assert clip.attributes == {"view": VIEW, "phase": None, "sex": "female", "age": 51, "image_quality": None}
    assert clip.frames.shape[0] == 3 and clip.spacing_mm == pytest.approx((0.9, 0.9))
    still = opened(segmenter, files["still_2CH_ED.nii.gz"])
    assert (still.attributes["view"], still.attributes["phase"]) == ("apical_two_chamber", "end_diastole")
    assert still.spacing_mm == pytest.approx((0.9, 1.1))
    assert opened(segmenter, files["still.png"]).spacing_mm is None
    words = " ".join(segmenter.segment(clip).prompts)
    assert "four-chamber" in words and "Somebody" not in words


def test_attributes_of_the_page_replace_those_of_the_file(
    segmenters: dict[str, Segmenter], files: dict[str, Path]
) -> None:
    segmenter = segmenters["echo_cris"]
    clip = opened(segmenter, files["clip.dcm"])
    changed = {"view": "apical_two_chamber", "phase": "end_diastole", "sex": "male", "age": 40, "image_quality": ""}
    said = segmenter.segment(clip, attributes=changed)
    assert all("two-chamber view" in text and "forty-year-old male." in text for text in said.prompts)
    unknown = segmenter.segment(clip, attributes={})
    assert all("chamber view" not in text for text in unknown.prompts)
    assert not np.array_equal(said.label_map, unknown.label_map)
    assert np.array_equal(segmenter.segment(clip, attributes=changed).label_map, said.label_map)  # nothing stays behind


def test_prompts_are_kept_and_the_network_is_not_made_again(segmenters: dict[str, Segmenter], phantom: Phantom) -> None:
    segmenter = segmenters["echo_cris"]
    image, network = segmenter.open(phantom.source()), segmenter.network
    first = segmenter.segment(image, "left ventricle").label_map
    for i in range(10):
        segmenter.segment(image, MYOCARDIUM.synonyms[i])
    assert len(segmenter._of_prompt) == 8 and "left ventricle" not in segmenter._of_prompt
    assert np.array_equal(segmenter.segment(image, "  left   ventricle ").label_map, first)
    assert segmenter.network is network and segmenter.opened.parser["network"] is network
    assert set(np.unique(first)) <= {0, 1} and first.any()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("$__import__('os').getpid()", "plain words"),
        ("the @network", "plain words"),
        ("%configs/inference.yaml::run", "plain words"),
        ("left\x00atrium", "plain words"),
        ("left atrium " * 40, "at most 300 letters, got 479"),
        ("a b c " * 40, "nobody taught this network the words 'b', 'c'"),
        ("<|endoftext|>", "nobody taught this network the word 'endoftext'"),
        ("banana", "nobody taught this network the word 'banana'"),
        ("the right ventricle", "the right ventricle is not among the structures"),
        ("the LV and the LA", "it names left ventricular cavity and left atrium"),
    ],
)
def test_a_prompt_is_never_code(segmenters: dict[str, Segmenter], phantom: Phantom, prompt: str, message: str) -> None:
    segmenter = segmenters["echo_cris"]
    with pytest.raises(ValueError, match=message):
        segmenter.segment(segmenter.open(phantom.source()), prompt)


# ---- sources


def test_the_phantom_is_that_of_synboost_phantom(tmp_path: Path) -> None:
    from synboost_monai.simulation import write_phantom

    folder = write_phantom(tmp_path / "p", num_patients=1, seed=3, image_height=96, num_frames=2, progress=False)
    drawn = draw_phantom(3, "apical_two_chamber", PHASE, tmp_path, image_height=96)
    stem = folder / "database_nifti/patient0001/patient0001_2CH_ES"
    for path, suffix in ((drawn.image_path, ""), (drawn.label_path, "_gt")):
        assert np.array_equal(load_echo(path)[0], load_echo(f"{stem}{suffix}.nii.gz")[0])
        assert load_echo(path)[1] == pytest.approx(load_echo(f"{stem}.nii.gz")[1])
    info = (stem.parent / "Info_2CH.cfg").read_text()
    assert f"Sex: {drawn.attributes['sex'][0].upper()}" in info and f"Age: {drawn.attributes['age']}\n" in info
    assert f"ImageQuality: {drawn.attributes['image_quality'].capitalize()}" in info


def test_what_is_no_image_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "datalist.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("words")
    for name, kind, message in (
        ("nowhere.png", FileNotFoundError, "no such file"),
        ("", ValueError, "expected one image file, got a folder"),
        ("datalist.json", ValueError, "not an image by its name or content"),
        ("notes.txt", ValueError, "not an image by its name or content"),
    ):
        for read in (file_source, file_label_source):
            with pytest.raises(kind, match=message):
                read(tmp_path / name, [tmp_path])
    with pytest.raises(ValueError, match="seed must be a whole number from 0, got -1"):
        draw_phantom(-1, VIEW, PHASE, tmp_path)
    with pytest.raises(ValueError, match="apical_two_chamber, apical_four_chamber"):
        draw_phantom(1, "parasternal", PHASE, tmp_path)


def test_uploads_are_opened_where_the_temporary_folder_is_a_link(
    phantom: Phantom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from synboost_monai.serving.demo.serve import session_folder

    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "link"))
    with session_folder() as folder:
        upload = Path(os.environ["GRADIO_TEMP_DIR"], "a.nii.gz")
        shutil.copy(phantom.image_path, upload)
        assert file_source(upload, [folder]).path == upload


def test_files_outside_of_the_folders_are_not_even_looked_for(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir(), outside.mkdir()
    (outside / "secret.png").write_bytes(b"x")
    (inside / "link.png").symlink_to(outside / "secret.png")
    paths = (outside / "secret.png", outside / "nowhere.png", inside / "../outside/secret.png", inside / "link.png")
    for name in (*paths, "~/x.png"):
        for read in (file_source, file_label_source):
            with pytest.raises(ValueError, match=r"\w+\.png: lies in no folder of --folders"):
                read(name, [inside])
    phantom = draw_phantom(1, VIEW, PHASE, outside, image_height=64)
    (inside / phantom.image_path.name).symlink_to(phantom.image_path)
    label_path = phantom.label_path.rename(inside / phantom.label_path.name)
    assert file_label_source(label_path, [inside]).image_path is None  # it really lies outside
    assert file_label_source(label_path, [tmp_path]).image_path is not None


# ---- what is said


def perfect(
    phantom: Phantom, spacing_mm: tuple[float, float] | None, label_map: np.ndarray | None = None
) -> Segmentation:
    """Make a segmentation that is the truth, or the given label map, by a network that is sure."""
    label_map = phantom.label_map if label_map is None else label_map
    pixels, aspect = load_echo(phantom.image_path)
    indices, names = [s.class_index for s in STRUCTURES], [s.name for s in STRUCTURES]
    probability = np.stack([np.where(label_map == i, 0.98, 0.01) for i in indices])[None].astype(np.float32)
    evidence = segmentation_evidence(probability, label_map, indices, names, [0.0] * 3, [0.0] * 3)
    doubt = DoubtAssessor(None)(label_map[None], [evidence], spacing_mm, aspect)
    image = OpenImage(phantom.source(), {}, pixels.numpy().astype(np.uint8), spacing_mm, aspect, {}, np.eye(4))
    return Segmentation(image, 0, None, label_map, label_map, None, doubt, ("",))


def test_measures_of_the_phantom_are_those_of_its_label_map(phantom: Phantom) -> None:
    from synboost_monai.heart.volumes import disk_volume_ml, measure_ventricle

    spacing = load_echo(phantom.image_path)[1]
    rows = structure_findings(perfect(phantom, spacing))
    assert [row.dice for row in rows] == [1.0, 1.0, 1.0]
    for row, structure in zip(rows, STRUCTURES):
        pixels = int((phantom.label_map == structure.class_index).sum())
        assert row.area_cm2 == pytest.approx(pixels * spacing[0] * spacing[1] / 100)
        sure, unsure = 0.98 * pixels, 0.01 * (phantom.label_map.size - pixels)
        assert row.predicted_dice == pytest.approx(2 * sure / (sure + unsure + pixels), rel=1e-5)
        assert row.words == structure.prompt_words
    ventricle = measure_ventricle(phantom.label_map, spacing)
    length, volume = ventricle_measures(perfect(phantom, spacing))
    assert length.value == f"{ventricle.length_mm:.0f} mm" and volume.value == f"{disk_volume_ml(ventricle):.0f} ml"


def test_without_a_calibration_nothing_is_measured(phantom: Phantom) -> None:
    result = perfect(phantom, None)
    assert ventricle_measures(result) == []
    assert [row.area_cm2 for row in structure_findings(result)] == [None] * 3
    assert [row.dice for row in structure_findings(result)] == [1.0] * 3  # needs no millimetres


def test_a_lost_ventricle_has_a_reason_in_place_of_a_volume_and_goes_to_review(phantom: Phantom) -> None:
    lost = np.where(phantom.label_map == 1, 0, phantom.label_map).astype(np.uint8)
    result = perfect(phantom, load_echo(phantom.image_path)[1], lost)
    assert [(m.value, m.reason) for m in ventricle_measures(result)] == [("–", "no left ventricular cavity")] * 2
    assert result.doubt["verdict"] == "review" and "No left ventricular cavity was found" in reasons(result.doubt)
    assert structure_findings(result)[0].dice == 0


# ---- pictures


def test_pictures_show_the_masks_in_their_colours(segmenters: dict[str, Segmenter], phantom: Phantom) -> None:
    result = perfect(phantom, load_echo(phantom.image_path)[1])
    plain = image_picture(result.image)
    assert plain.shape[2] == 3 and (plain[..., 0] == plain[..., 1]).all() and max(plain.shape) == 560
    outlined, filled = mask_picture(result), mask_picture(result, is_filled=True)
    for structure in STRUCTURES:
        assert (outlined == structure.colour).all(axis=-1).any()
    changed = [(picture != plain).any(axis=-1).mean() for picture in (outlined, filled)]
    assert 0 < changed[0] < 0.5 * changed[1]
    assert spread_picture(result) is None  # one prompt
    real = segmenters["echo_cris"].segment(segmenters["echo_cris"].open(phantom.source()))
    glowing = spread_picture(real)
    assert glowing is not None and glowing.shape == plain.shape
    assert (glowing[..., 0] != glowing[..., 2]).any()


def test_source_of_a_synthetic_image_says_so_in_prompts_that_know_the_word(
    weights: dict[str, Path], phantom: Phantom
) -> None:
    segmenter = Segmenter("echo_clipseg", str(weights["echo_clipseg"]), {**SEGMENTER, "domain_word": True})
    for is_synthetic, word in ((False, "real"), (True, "synthetic")):
        source = Source(phantom.image_path, {**phantom.attributes, "is_synthetic": is_synthetic})
        prompts = segmenter.segment(segmenter.open(source)).prompts
        assert all(f"in a {word} image." in text for text in prompts)


def test_what_the_network_sees_is_said() -> None:
    def words(logits: list[float]) -> str:
        evidence = segmentation_evidence(
            np.zeros((1, 1, 4, 4)), np.zeros((4, 4), np.uint8), [2], ["myocardium"], [0.0], [0.0]
        )
        evidence["view"] = view_evidence(np.array(logits))
        return view_in_words(DoubtAssessor(None)(np.zeros((1, 4, 4), np.uint8), [evidence], None))

    assert words([0, 0, 9, np.log(4)]) == (
        "The network sees an apical four chamber view (probability 1.00), 80% of the way from end-diastole to end-systole."
    )
    assert words([9, 0, 0, 0]) == "" == view_in_words({})
