"""Test that weights adapt to images that nobody labelled, and that a result that is worse is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from synboost_monai.__main__ import main
from synboost_monai.adaptation import adapt as module
from synboost_monai.adaptation.adapt import Measures, adapt, why_worse
from synboost_monai.adaptation.frames import FRAMES_OF_CLIP, take_frames
from synboost_monai.adaptation.options import AdaptOptions
from synboost_monai.bundle_run import bundle_dir
from synboost_monai.data import list_images
from synboost_monai.dicom.writing.clip import write_clip as write_dicom_clip
from synboost_monai.model_card import read_card
from synboost_monai.records import EchoRecord
from synboost_monai.simulation.phantom import write_frames
from synboost_monai.simulation.write import SimulatedSettings, write_simulated
from tests.clips import write_clip

GOOD = Measures(simulated_dice=0.87, mean_spread=0.05, expected_dice=0.9, problem_share=0.1)
BETTER = Measures(simulated_dice=0.85, mean_spread=0.03, expected_dice=0.95, problem_share=0.05)


def test_weights_are_worse_if_they_forget_scatter_or_learn_something_else() -> None:
    assert why_worse(GOOD, BETTER, 0.9) == []
    for after, agreement, words in (
        (replace(BETTER, simulated_dice=0.81), 0.9, "simulated hearts falls by 0.060"),
        (replace(BETTER, problem_share=0.25), 0.9, "15% more of the held-out images have a finding"),
        (replace(BETTER, mean_spread=0.056), 0.9, "differ by 12% more"),
        (BETTER, 0.7, "agree with a Dice of 0.70"),
    ):
        (reason,) = why_worse(GOOD, after, agreement)
        assert words in reason


@pytest.fixture(scope="module")
def hearts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 36 images without label maps."""
    folder = tmp_path_factory.mktemp("hearts")
    write_simulated(folder / "made", SimulatedSettings(num_images=36, seed=3, image_size=96), workers=1)
    images = folder / "images"
    images.mkdir()
    for item in list_images(folder / "made", "training+validation+testing"):
        shutil.copy(item["image"], images)
    return images


@pytest.fixture
def few_hearts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NUM_HEARTS", 20)


@pytest.mark.slow
def test_the_shipped_weights_adapt_and_go_on_where_they_stopped(
    hearts: Path, tmp_path: Path, few_hearts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, options = tmp_path / "out", AdaptOptions(updates=4)
    started: list[str] = []
    run_bundle = module.run_bundle

    def note(bundle: str, config: str, settings: dict[str, object]) -> None:
        started.append(config)
        if config == "calibrate" and started.count("calibrate") == 1:
            raise KeyboardInterrupt
        run_bundle(bundle, config, settings)

    monkeypatch.setattr(module, "run_bundle", note)
    with pytest.raises(KeyboardInterrupt):
        adapt(hearts, out, options)
    assert not (out / "model.pt").exists()
    result = adapt(hearts, out, options)
    assert started == ["pseudo_label", "train_adapted", *["evaluate", "pseudo_label"] * 2, "calibrate", "calibrate"]
    assert json.loads((out / "adapt.json").read_text()) == json.loads(json.dumps(result))
    assert result["verdict"] == "adapted" and result["updates"] == 4 and result["num_learnt_from"] >= 20
    assert result["agreement"] > 0.9 and result["before"]["simulated_dice"] > 0.75

    shipped = torch.load(bundle_dir("echo_cris") / "models/model.pt", weights_only=True)
    adapted = torch.load(out / "model.pt", weights_only=True)
    moved = {name for name, value in shipped.items() if not torch.equal(value.float(), adapted[name].float())}
    assert moved and not any(name.startswith("view_head") for name in moved)
    card = read_card(out / "model.pt")
    assert card is not None and card.facts["has_view_head"] and card.facts["image_size"] == 96
    assert json.loads((out / "calibration.json").read_text())["checkpoint_sha256"] == card.weights_sha256

    with pytest.raises(ValueError, match="with another updates; give another folder"):
        adapt(hearts, out, AdaptOptions(updates=5))


def test_too_few_hearts_are_refused(hearts: Path, tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    for path in sorted(hearts.iterdir())[:4]:
        shutil.copy(path, tmp_path / "few")
    with pytest.raises(ValueError, match="sure enough of . images, fewer than 20"):
        adapt(tmp_path / "few", tmp_path / "out", AdaptOptions())
    assert not (tmp_path / "out/model.pt").exists()


def test_frames_belong_to_the_patient_whom_a_clips_name_tells(tmp_path: Path) -> None:
    clip = np.arange(20, dtype=np.uint8)[:, None, None] * np.ones((1, 40, 50), np.uint8) * 10
    (tmp_path / "in").mkdir()
    for name in ("patient0007_4CH_half_sequence", "patient0007_2CH_half_sequence", "other_sequence"):
        write_frames(tmp_path / f"in/{name}.nii.gz", clip, 0.3)
    dataset, section = take_frames(tmp_path / "in", "training", tmp_path / "out/frames")
    items = list_images(dataset, section)
    assert {(item["patient"], item.get("view")) for item in items} == {
        ("patient0007", "apical_four_chamber"),
        ("patient0007", "apical_two_chamber"),
        ("clip00000", None),
    }
    assert not any("phase" in item for item in items)
    assert take_frames(tmp_path / "in", "training", tmp_path / "out/frames") == (dataset, section)
    (tmp_path / "in/other_sequence.nii.gz").unlink()
    with pytest.raises(ValueError, match="holds frames of other clips"):
        take_frames(tmp_path / "in", "training", tmp_path / "out/frames")


def test_dicom_clips_belong_to_the_patient_in_their_header(tmp_path: Path) -> None:
    """Otherwise one clip of a patient would be learnt from while another measures what was learnt."""
    folder, frames = tmp_path / "in", np.random.default_rng(0).integers(0, 255, (40, 60, 60), np.uint8)
    folder.mkdir()
    unknown = {"PatientID": "", "PatientName": ""}
    for name, patient, overrides in (
        ("a", "1", {}),
        ("b", "2", {}),
        ("c", "1", {}),
        ("d", "3", unknown),
        ("e", "3", unknown),
    ):
        record = EchoRecord(folder / f"{name}.dcm", None, patient, "apical_four_chamber")
        write_dicom_clip(record, frames, (0.5, 0.5), study=name, frame_time_ms=20, overrides=overrides)
    items = list_images(*take_frames(folder, "training", tmp_path / "out/frames"))
    assert len(items) == 5 * FRAMES_OF_CLIP
    whose = [item["patient"] for item in items[::FRAMES_OF_CLIP]]
    assert whose == ["dicom_patient00000", "dicom_patient00001", "dicom_patient00000", "clip00003", "clip00004"]
    (folder / "b.dcm").unlink()  # now all headers that name a patient name the same
    items = list_images(*take_frames(folder, "training", tmp_path / "again/frames"))
    assert len({item["patient"] for item in items}) == 4


def test_pseudo_label_labels_frames_of_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("synboost_monai.__main__.run", lambda *words, **settings: calls.append((words, settings)))
    (tmp_path / "in").mkdir()
    write_frames(tmp_path / "in/a_sequence.nii.gz", np.ones((9, 40, 50), np.uint8), 0.3)
    out = tmp_path / "out"
    words = ["--dataset_dir", str(tmp_path / "in"), "--output_dir", str(out), "--labelled_dir", "mine"]
    main(["pseudo-label", "echo_cris", *words])
    where = {"dataset_dir": str(out / "frames"), "section": "training", "output_dir": str(out)}
    assert calls == [(("echo_cris", "pseudo_label"), {**where, "labelled_dir": "mine"})]
    assert len(list_images(out / "frames", "training")) == FRAMES_OF_CLIP
    assert (out / "frames/datalist.json").stat().st_mode & 0o077 == 0  # frames are patients' images


def test_frames_are_taken_from_all_of_a_clip(tmp_path: Path) -> None:
    clip = np.arange(20, dtype=np.uint8)[:, None, None] * np.ones((1, 40, 50), np.uint8) * 10
    folder = tmp_path / "in"
    folder.mkdir()
    write_frames(folder / "a_sequence.nii.gz", clip, (0.5, 0.4))
    write_frames(folder / "still.nii.gz", clip[:1], 0.3)
    dataset, section = take_frames(folder, "training", tmp_path / "out/frames")
    items = list_images(dataset, section)
    assert len(items) == FRAMES_OF_CLIP + 1 and Path(items[-1]["image"]) == folder / "still.nii.gz"
    assert len({item["patient"] for item in items}) == 2
    from synboost_monai.files import read_plane

    levels = [float(read_plane(item["image"]).pixels.mean()) for item in items[:-1]]
    assert levels == sorted(set(levels)) and levels[0] == 0 and levels[-1] >= 160  # 0 to 190
    assert read_plane(items[0]["image"]).spacing_mm == pytest.approx((0.5, 0.4))

    pytest.importorskip("av")
    videos = tmp_path / "videos"
    videos.mkdir()
    write_clip(videos / "b.avi", clip)
    dataset, section = take_frames(videos, "training", tmp_path / "from_avi/frames")
    pictures = [Path(item["image"]) for item in list_images(dataset, section)]
    assert len(pictures) == FRAMES_OF_CLIP and {path.suffix for path in pictures} == {".png"}  # no spacing is made up
    assert [int(np.asarray(Image.open(path)).mean()) for path in pictures] == [int(level) for level in levels]

    stills = tmp_path / "stills"
    stills.mkdir()
    Image.fromarray(clip[3]).save(stills / "a.png")
    assert take_frames(stills, "training", tmp_path / "none") == (str(stills), "training")
    assert not (tmp_path / "none").exists()
