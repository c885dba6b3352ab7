"""Test the segmenters' bundles with tiny networks: every config runs, resumes, refuses bad input, and has what MONAI requires."""

from __future__ import annotations

import csv
import functools
import json
import re
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from monai.inferers import Inferer

from synboost_monai.bundle_run import check_overrides, config_files
from synboost_monai.data.prepare import prepare_dataset
from synboost_monai.errors import user_error
from synboost_monai.evaluation.clinical import clinical_measures
from synboost_monai.evaluation.per_case import read_metrics
from synboost_monai.model_card import PUBLISHED_FACTS, read_card
from synboost_monai.structures import CLASS_NAMES, STRUCTURES
from synboost_monai.transforms import load_echo
from tests.bundles.conftest import BUNDLES_DIR, WRITTEN, both, read_yaml, workflow
from tests.clips import write_clip
from tests.echonet_copy import write_echonet
from tests.forked import module, ranks
from tests.tiny import tiny_weights


def train(bundle: str, data: Path, output_dir: Path, **overrides: Any) -> ConfigWorkflow:
    defaults = {"max_epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "prompt_level": "P7"}
    return workflow(bundle, ["train"], "train", dataset_dir=data, output_dir=output_dir, **{**defaults, **overrides})


def segment(bundle: str, weights: Path, data: Path, output_dir: Path, *configs: str, **overrides: Any) -> None:
    """Run inference.yaml, with further configs after it, on a folder of images or a data set."""
    places = {"dataset_dir": data, "output_dir": output_dir, "checkpoint_path": weights}
    workflow(bundle, ["inference", *configs], **{**places, **overrides}).run()


def said_by(caught: pytest.ExceptionInfo[BaseException]) -> str:
    """Return the user's mistake in the chain of errors that MONAI wraps around it."""
    return str(user_error(caught.value))


@pytest.fixture(scope="module")
def training_of(datalist_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that trains a bundle once, in whatever order the tests ask for it."""

    @functools.cache
    def folder_of(bundle: str) -> Path:
        output_dir = tmp_path_factory.mktemp(f"trained_{bundle}")
        train(bundle, datalist_dir, output_dir).run()
        return output_dir

    return folder_of


@pytest.fixture
def trained(bundle: str, training_of: Callable[[str], Path]) -> Path:
    """Return the folder of a finished tiny training."""
    return training_of(bundle)


@both
def test_training_writes_weights_log_and_tensorboard(trained: Path) -> None:
    assert sorted(p.name for p in trained.iterdir()) == sorted(["history.csv", *WRITTEN])
    assert "val_mean_dice" in (trained / "log.txt").read_text()
    weights = torch.load(trained / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in weights.values())

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained / "tensorboard")).Reload()
    assert {"train_loss", "val_loss", "val_mean_dice", "learning_rate"} <= set(events.Tags()["scalars"])
    assert len(events.Images("image, expert, prediction")) == 2


@both
def test_training_says_what_its_weights_are(bundle: str, trained: Path) -> None:
    card = read_card(trained / "model.pt")
    assert card is not None and card.architecture == bundle.removeprefix("echo_")
    assert (card.facts["preset"], card.facts["image_size"], card.prompt_level) == ("tiny", 32, "P7")
    assert card.facts.keys() == PUBLISHED_FACTS[card.architecture].keys()
    assert card.training["learning_rate"] == 1e-3 and "/" not in card.training["dataset_dir"]
    rows = list(csv.DictReader((trained / "history.csv").read_text().splitlines()))
    best = max(rows, key=lambda row: float(row["val_mean_dice"]))
    assert card.measured["epoch"] == int(best["epoch"])
    assert card.measured["val_mean_dice"] == pytest.approx(float(best["val_mean_dice"]), abs=1e-4)
    assert card.measured["val_loss"] == pytest.approx(float(best["val_loss"]), abs=1e-4)


def test_what_model_json_says_need_not_be_said(bundle: str, trained: Path, tmp_path: Path) -> None:
    """This holds also for weights with another name; a contradiction is reported in one line, and nothing is written."""
    three_formats(tmp_path / "images")
    given = bundle, trained / "model.pt", tmp_path / "images"
    segment(*given, tmp_path / "said")
    segment(*given, tmp_path / "unsaid", preset="$None", image_size="$None")
    for path in sorted((tmp_path / "said").iterdir()):
        assert path.read_bytes() == (tmp_path / "unsaid" / path.name).read_bytes(), path.name
    for key, value in (("image_size", 64), ("padding_id", 49407), ("keep_aspect", False), ("preset", "small")):
        with pytest.raises((ValueError, RuntimeError)) as caught:
            segment(*given, tmp_path / "none", **{key: value})
        assert f"model.json: these weights were made with {key}" in said_by(caught)
        assert not (tmp_path / "none").exists()


def test_a_training_starts_as_its_weights_were_made(
    bundle: str, trained: Path, datalist_dir: Path, tmp_path: Path
) -> None:
    silent = {"preset": "$None", "image_size": "$None", "init_checkpoint": str(trained / "model.pt")}
    run = train(bundle, datalist_dir, tmp_path / "a", **silent, padding_id=49407)
    facts = run.parser.get_parsed_content("facts")
    # it may learn other words
    assert (facts["preset"], facts["image_size"], facts["padding_id"]) == ("tiny", 32, 49407)
    with pytest.raises((ValueError, RuntimeError)) as caught:
        train(bundle, datalist_dir, tmp_path / "b", **{**silent, "preset": "small"}).run()
    assert "made with preset tiny, but --preset says small" in said_by(caught)


def test_short_training_is_validated_in_the_end(bundle: str, datalist_dir: Path, tmp_path: Path) -> None:
    train(bundle, datalist_dir, tmp_path, max_epochs=1, val_interval=4).run()
    assert (tmp_path / "model.pt").is_file()


@pytest.mark.parametrize(
    ("bundle", "knobs"), [("echo_cris", "published"), ("echo_clipseg", "small")], indirect=["bundle"]
)
def test_killed_training_resumes_to_the_same_bits(bundle: str, datalist_dir: Path, tmp_path: Path, knobs: str) -> None:
    options: dict[str, Any] = {"max_epochs": 2}
    if knobs == "small":
        options |= {
            "lr_schedule": "cosine",
            "ema_decay": 0.9,
            "autocast_dtype": "bfloat16",
            "channels_last": True,
            "encoder_learning_rate_scale": 0.5,
            "freeze_encoders": False,
        }
    weights = []
    for name, is_killed in (("whole", False), ("killed", True)):
        if is_killed:
            first = train(bundle, datalist_dir, tmp_path / name, **options)

            def kill(engine: Any) -> None:
                raise KeyboardInterrupt

            first.trainer.add_event_handler(Events.EPOCH_STARTED(once=2), kill)
            with pytest.raises(KeyboardInterrupt):
                first.run()
            assert (tmp_path / name / "resume.ckpt").is_file()
        train(bundle, datalist_dir, tmp_path / name, **options).run()
        assert not (tmp_path / name / "resume.ckpt").exists()
        weights.append(torch.load(tmp_path / name / "model.pt", weights_only=True))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@both
def test_finetuning_takes_weights_alone(bundle: str, trained: Path, datalist_dir: Path, tmp_path: Path) -> None:
    run = train(bundle, datalist_dir, tmp_path, init_checkpoint=str(trained / "model.pt"))
    weights = torch.load(trained / "model.pt", weights_only=True)
    network, optimizer = run.parser.get_parsed_content("network"), run.parser.get_parsed_content("optimizer")
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert not optimizer.state


@pytest.mark.slow
def test_distributed_training_runs(datalist_dir: Path, tmp_path: Path) -> None:
    """Two processes run on the CPU, as torchrun starts them, separately from this one, since ignite keeps the group for ever."""
    configs = "['configs/train.yaml','configs/multi_gpu_train.yaml']"
    words = ["run", "--config_file", configs, "--dataset_dir", datalist_dir]
    words += ["--output_dir", tmp_path, "--preset", "tiny", "--image_size", "32", "--max_epochs", "1"]
    words += ["--batch_size", "4", "--backend", "gloo", "--device", "$torch.device('cpu')"]
    processes = ranks(2, *module("monai.bundle", *words), folder=BUNDLES_DIR / "echo_cris")
    bars = sum(process.done().stderr.count("100%|") for process in processes)
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert not any(name.startswith("module.") for name in weights)
    assert bars >= 1 and sorted(p.name for p in tmp_path.iterdir()) == sorted(["history.csv", *WRITTEN])


@both
def test_evaluation_measures_on_the_native_grid(bundle: str, trained: Path, datalist_dir: Path, tmp_path: Path) -> None:
    import pandas as pd

    segment(bundle, trained / "model.pt", datalist_dir, tmp_path, "evaluate", seed=5)
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert len(table) == 4 * len(STRUCTURES) and table["patient"].nunique() == 1
    assert set(table["structure"]) == {s.name for s in STRUCTURES}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["section"] == "testing" and summary["seed"] == 5 and len(summary["checkpoint_sha256"]) == 64
    assert summary["overall"]["dice_mean"] == pytest.approx(table["dice"].mean(), abs=1e-5)
    # one prompt: no spread
    assert sorted(p.suffix for p in (tmp_path / "label_maps").iterdir()) == [".gz"] * 4 + [".json"] * 4
    assert set(table["verdict"]) <= {"accept", "review"} and table["predicted_dice"].between(0, 1).all()
    assert summary["doubt"]["calibrated"] is False and summary["doubt"]["num_worst"] == 1
    assert (summary["prompt_ensemble"], summary["keep_largest"], summary["fill_holes"]) == (None, False, False)


class BrightnessInferer(Inferer):
    """Find what conftest.py paints: bright muscle, a dark cavity above and a dark atrium below; groups differ a little."""

    def __call__(
        self, inputs: torch.Tensor, network: Any, input_ids: Any = None, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        grey = torch.nn.functional.avg_pool2d(torch.as_tensor(inputs)[:, :1], 3, 1, 1)  # (B, 1, N, N), normalised
        is_below = torch.arange(grey.shape[-1])[:, None] > 0.7 * grey.shape[-1]
        dark = -4 * (grey + 0.9)
        group = torch.cat([dark.where(~is_below, -9.0), 4 * grey, dark.where(is_below, -9.0)], dim=1)
        return torch.cat([group + 0.1 * i for i in range(input_ids.shape[1] // 3)], dim=1)


def test_a_calibration_serves_the_weights_it_was_fitted_to(
    bundle: str, trained: Path, datalist_dir: Path, tmp_path: Path
) -> None:
    import pandas as pd

    weights = trained / "model.pt"
    common = {"seed": 5, "inferer": BrightnessInferer()}

    def calibrate(weights: Path, name: str) -> dict[str, Any]:
        segment(bundle, weights, datalist_dir, tmp_path / name, "calibrate", section="training", **common)
        assert [p.name for p in (tmp_path / name).iterdir()] == ["calibration.json"]
        return json.loads((tmp_path / name / "calibration.json").read_text())

    def records_of(weights: Path, name: str, **options: Any) -> list[dict[str, Any]]:
        segment(bundle, weights, datalist_dir, tmp_path / name, **{**common, **options})
        return [json.loads(p.read_text()) for p in sorted((tmp_path / name).glob("*.json"))]

    calibration = calibrate(weights, "calibration")
    assert (calibration["num_images"], calibration["num_patients"], calibration["section"]) == (16, 4, "training")
    assert calibration["num_groups"] == 2 and calibration["seed"] == 5
    assert calibration["settings"]["prompt_ensemble"] == ["P6"] and calibration["settings"]["threshold"] == 0.5

    use = {"calibration_path": tmp_path / "calibration/calibration.json"}
    records = records_of(weights, "out", **use)
    assert len(records) == 4 and all(r["calibrated"] for r in records)
    assert {r["model_sha256"] for r in records} == {calibration["checkpoint_sha256"]}

    # beside its weights it is found, and passed over where it does not fit
    (tmp_path / "beside").mkdir()
    for path in (weights, trained / "model.json", tmp_path / "calibration/calibration.json"):
        shutil.copy(path, tmp_path / "beside")
    beside = tmp_path / "beside/model.pt"
    assert records_of(beside, "found") == records
    assert not any(record["calibrated"] for record in records_of(beside, "words", prompt_ensemble=None))
    assert calibrate(beside, "again")["structures"] == calibration["structures"]

    knobs = {"prompt_ensemble": ["P6"], "keep_largest": True, "fill_holes": True}
    segment(bundle, weights, datalist_dir, tmp_path / "scores", "evaluate", **common, **use, **knobs)
    assert json.loads((tmp_path / "scores" / "summary.json").read_text())["doubt"]["calibrated"] is True
    table = pd.read_csv(tmp_path / "scores" / "metrics.csv")
    said = {r["case"]: r["structures"] for r in records}
    for row in table.itertuples():
        assert row.predicted_dice == pytest.approx(said[row.case][row.structure]["predicted_dice"], abs=1e-5)

    other = torch.load(weights, weights_only=True)
    scaled = {name: value * 1.01 if value.is_floating_point() else value for name, value in other.items()}
    torch.save(scaled, tmp_path / "b.pt")
    for path, change, match in (
        (tmp_path / "b.pt", {}, "fitted for the weights with SHA-256"),
        (weights, {"prompt_ensemble": None}, r"fitted with prompt_ensemble \['P6'\], but this run has None"),
    ):
        with pytest.raises(RuntimeError) as caught:
            segment(bundle, path, datalist_dir, tmp_path / "none", **common, **use, **change)
        assert re.search(match, said_by(caught)) and not (tmp_path / "none").exists()


def test_images_that_a_segmenter_labelled_join_a_training(
    bundle: str, trained: Path, datalist_dir: Path, tmp_path: Path
) -> None:
    from synboost_monai.data import read_datalist, write_subset

    class Brightness(BrightnessInferer):
        goes_itself = with_view = False

    write_subset(datalist_dir, tmp_path / "part", patients=2)
    settings = {"labelled_dir": tmp_path / "part", "keep_largest": True, "inferer": Brightness()}
    segment(bundle, trained / "model.pt", datalist_dir, tmp_path / "pseudo", "pseudo_label", **settings)
    made = read_datalist(tmp_path / "pseudo", "training")
    # of 12 images of 3 patients, the least sure quarter not
    assert len(made) == 9 and len({item["patient"] for item in made}) == 3
    record = json.loads(Path(made[0]["label"].replace(".nii.gz", ".json")).read_text())
    assert record["structures"]["myocardium"]["mean_spread"] > 0  # the views disagree a little

    run = train(bundle, tmp_path / "part", tmp_path / "run", max_epochs=1, pseudo_labelled_dir=tmp_path / "pseudo")
    run.run()
    images = [item["image"] for item in run.parser.get_parsed_content("train::dataset::data")]
    assert len(images) == 4 + 9 and {item["image"] for item in made} < set(images)
    recipe = json.loads((tmp_path / "run/model.json").read_text())["training"]
    assert recipe["pseudo_labelled_dir"] == "pseudo"


def test_calibrate_is_read_after_inference(bundle: str) -> None:
    assert [f.stem for f in config_files(bundle, "calibrate")] == ["inference", "calibrate"]
    files = config_files(bundle, "inference,evaluate,calibrate")
    assert check_overrides(files, {"review_share": "0.2", "prompt_ensemble": "paper"}) == {
        "review_share": 0.2,
        "prompt_ensemble": "paper",
    }


def test_clips_are_segmented_frame_by_frame(bundle: str, trained: Path, tmp_path: Path) -> None:
    import nibabel as nib

    (tmp_path / "images").mkdir()
    frames = np.random.default_rng(0).rayleigh(40, (5, 50, 36)).clip(0, 255).astype(np.uint8)
    nib.save(nib.Nifti1Image(frames.T, np.diag([-0.2, -0.4, 1, 1])), tmp_path / "images" / "clip.nii.gz")
    nib.save(nib.Nifti1Image(frames[2].T, np.diag([-0.2, -0.4, 1, 1])), tmp_path / "images" / "still.nii.gz")
    film = find_spec("av") and write_clip(tmp_path / "images" / "film.avi", frames)
    options = {"threshold": 0.05, "sequences": True, "batch_size": 2}
    segment(bundle, trained / "model.pt", tmp_path / "images", tmp_path / "out", **options)
    clip, still = load_echo(tmp_path / "out" / "clip.nii.gz", True)[0], load_echo(tmp_path / "out" / "still.nii.gz")[0]
    assert clip.shape == (5, 50, 36) and (clip[2] == still[0]).float().mean() > 0.999
    spread = load_echo(tmp_path / "out" / "clip_spread.nii.gz", True)[0]
    assert spread.shape == (5, 50, 36) and 0 < spread.max() <= 0.5
    record = json.loads((tmp_path / "out" / "clip.json").read_text())
    assert record["num_frames"] == 5 and [f["frame_index"] for f in record["frames"]] == [0, 1, 2, 3, 4]
    assert "frames" not in json.loads((tmp_path / "out" / "still.json").read_text())
    if film:
        assert load_echo(tmp_path / "out" / "film.nii.gz", True)[0].shape == (5, 50, 36)
        assert json.loads((tmp_path / "out" / "film.json").read_text())["num_frames"] == 5


def test_what_the_expert_did_not_draw_is_not_scored(bundle: str, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("av")
    prepare_dataset(write_echonet(tmp_path / "copy"), tmp_path / "data")
    segment(bundle, trained / "model.pt", tmp_path / "data", tmp_path / "out", "evaluate", section="training")
    rows = read_metrics(tmp_path / "out")
    assert len(rows) == 4 and set(rows["structure"]) == {"left_ventricular_cavity"}
    assert rows["dice"].notna().all() and rows[["hd_mm", "hd95_mm", "asd_mm"]].isna().all().all()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(summary["structures"]) == ["left_ventricular_cavity"] and summary["overall"]["num_dice"] == 4
    measures = clinical_measures(tmp_path / "out", plots=False).frame
    of_fraction = measures["measure"] == "ejection_fraction"
    assert set(measures[of_fraction]["reference"]) == {51.0, 54.0} and measures[~of_fraction]["predicted"].isna().all()
    with pytest.raises((ValueError, RuntimeError)) as caught:
        train(bundle, tmp_path / "data", tmp_path / "trained").run()
    assert "what nobody drew would count as absent" in said_by(caught)


def test_turned_images_get_the_same_masks_in_space(bundle: str, trained: Path, tmp_path: Path) -> None:
    import nibabel as nib

    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).rayleigh(40, (50, 36)).clip(0, 255).astype(np.uint8)
    image = nib.Nifti1Image(pixels.T[:, :, None], np.diag([-0.2, -0.4, 1, 1]))
    turns: dict[str, Any] = {
        **{"straight": None, "closest": [[0, -1], [1, -1], [2, 1]], "mirrored": [[0, -1], [1, 1], [2, 1]]},
        **{"quarter": [[1, 1], [0, -1], [2, 1]], "first_axis": [[1, -1], [2, 1], [0, 1]]},
    }
    for name, turn in turns.items():
        turned = image if name == "straight" else image.as_reoriented(turn)
        nib.save(turned, tmp_path / "images" / f"{name}.nii.gz")
    segment(bundle, trained / "model.pt", tmp_path / "images", tmp_path / "out", threshold=0.05)
    for end in ("", "_spread"):
        expected = np.asarray(nib.load(tmp_path / "out" / f"straight{end}.nii.gz").dataobj)
        assert expected.any()
        for name in turns:
            found, stored = (
                nib.load(f) for f in (tmp_path / f"out/{name}{end}.nii.gz", tmp_path / f"images/{name}.nii.gz")
            )
            assert found.shape == stored.shape and np.array_equal(found.affine, stored.affine)
            back = found if name == "straight" else nib.as_closest_canonical(found)
            back = np.asarray(back.dataobj)
            assert np.array_equal(back if name == "straight" else back[::-1, ::-1], expected), name


def test_dicom_is_segmented_in_its_region_and_comes_back_on_the_whole_frame(
    bundle: str, trained: Path, tmp_path: Path
) -> None:
    """One batch holds a still with a calibration, one without, and a PNG of the region; then a clip follows, named without a suffix."""
    import nibabel as nib
    import pydicom
    from PIL import Image

    from synboost_monai.dicom.writing.image import write_dicom_pair
    from synboost_monai.records import EchoRecord

    first_row, first_column, rows, columns = 4, 10, 50, 36
    frames = np.random.default_rng(0).rayleigh(40, (3, 64, 60)).clip(0, 255).astype(np.uint8)
    images = tmp_path / "images"
    images.mkdir()

    def write(path: Path, num_frames: int, **changes: object) -> None:
        label = np.zeros((64, 60), np.uint8)
        record = EchoRecord(path, tmp_path / "label.dcm", "p", "apical_four_chamber", sex="female", age=64)
        write_dicom_pair(record, frames[2], label, (0.4, 0.2), name="still")
        dataset = pydicom.dcmread(path)
        (region,) = dataset.SequenceOfUltrasoundRegions
        region.RegionLocationMinY0, region.RegionLocationMinX0 = first_row, first_column
        region.RegionLocationMaxY1, region.RegionLocationMaxX1 = first_row + rows - 1, first_column + columns - 1
        for keyword, value in changes.items():
            setattr(region, keyword, value)
        if num_frames > 1:
            dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.3.1"
            dataset.NumberOfFrames, dataset.FrameTime, dataset.PixelData = num_frames, 20, frames.tobytes()
        dataset.save_as(path)

    write(images / "still.dcm", 1)
    write(images / "bare.dcm", 1, PhysicalUnitsXDirection=0)
    Image.fromarray(frames[2, first_row:-10, first_column:-14]).save(images / "region.png")
    write(tmp_path / "IM_0001", 3)
    options = {"threshold": 0.05, "prompt_level": "P1"}
    segment(bundle, trained / "model.pt", images, tmp_path / "out", **options)
    found = {name: nib.load(tmp_path / "out" / name) for name in ("still.nii.gz", "bare.nii.gz", "still_spread.nii.gz")}
    assert all(image.shape[:2] == (60, 64) for image in found.values())
    assert np.allclose(found["still.nii.gz"].affine, np.diag([-0.2, -0.4, 1, 1]))
    assert np.allclose(found["bare.nii.gz"].affine, np.diag([-1, -1, 1, 1]))
    label_map = np.asarray(found["bare.nii.gz"].dataobj).squeeze().T
    inner = label_map[first_row : first_row + rows, first_column : first_column + columns]
    png = np.asarray(Image.open(tmp_path / "out" / "region.png"))
    assert (inner == png).mean() > 0.999 and inner.any() and np.count_nonzero(label_map) == np.count_nonzero(inner)
    areas = {}
    for name in ("still", "bare", "region"):
        record = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        areas[name] = record["structures"]["left_ventricular_cavity"]["area_mm2"]
    assert areas["still"] > 0 and areas["bare"] is None and areas["region"] is None

    segment(bundle, trained / "model.pt", tmp_path / "IM_0001", tmp_path / "clip", sequences=True, **options)
    clip = np.asarray(nib.load(tmp_path / "clip" / "IM_0001.nii.gz").dataobj).T
    still = np.asarray(found["still.nii.gz"].dataobj).squeeze().T
    assert clip.shape == (3, 64, 60) and (clip[2] == still).mean() > 0.999


def three_formats(folder: Path) -> dict[str, np.ndarray]:
    """Make a folder with one image of each format, and return their pixels by name."""
    import itk
    import nibabel as nib
    from PIL import Image

    folder.mkdir()
    pixels = (np.random.default_rng(0).rayleigh(40, (50, 36))).clip(0, 255).astype(np.uint8)
    nib.save(nib.Nifti1Image(pixels.T, np.diag([-0.2, -0.4, 1, 1])), folder / "a.nii.gz")
    image = itk.image_from_array(pixels)
    image.SetSpacing([0.308, 0.154])
    itk.imwrite(image, str(folder / "b.mhd"))
    Image.fromarray(pixels).save(folder / "c.png")
    return {"a.nii.gz": pixels, "b.mhd": pixels, "c.png": pixels}


@pytest.mark.parametrize("prompt", ["", "LA"])
def test_inference_on_a_folder_of_all_formats(bundle: str, trained: Path, tmp_path: Path, prompt: str) -> None:
    three_formats(tmp_path / "images")
    segment(bundle, trained / "model.pt", tmp_path / "images", tmp_path / "out", prompt=prompt, threshold=0.05)
    stems = ["a", "a_spread", "b", "b_spread", "c", "c_spread"]
    names = {f"{stem}{'.nii.gz' if stem[0] == 'a' else '.mha' if stem[0] == 'b' else '.png'}" for stem in stems}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names | {"a.json", "b.json", "c.json"}
    for image_name, written in (("a.nii.gz", "a.nii.gz"), ("b.mhd", "b.mha"), ("c.png", "c.png")):
        image, spacing_mm = load_echo(tmp_path / "images" / image_name)
        label_map, spacing_again = load_echo(tmp_path / "out" / written)
        assert label_map.shape == image.shape and spacing_again == spacing_mm
        assert torch.equal(label_map.affine, image.affine)
        assert set(label_map.unique().tolist()) <= ({0, 3} if prompt else {0, 1, 2, 3})
        record = json.loads((tmp_path / "out" / f"{image_name[0]}.json").read_text())
        assert (record["image"], record["label_map"]) == (image_name, written)
        assert set(record["structures"]) == {s.name for s in STRUCTURES} and record["anatomy"]
        assert str(tmp_path) not in json.dumps(record)
        assert record.get("prompt", {}).get("reading") == ("read as left atrium" if prompt else None)
        if not prompt:
            spread, spacing_again = load_echo(tmp_path / "out" / record["spread"])
            assert spread.shape == image.shape and spacing_again == spacing_mm and spread.max() > 0
            assert torch.equal(spread.affine, image.affine)


@both
def test_batch_size_does_not_change_label_maps(bundle: str, trained: Path, datalist_dir: Path, tmp_path: Path) -> None:
    found = []
    for batch_size in (1, 3):
        out = tmp_path / str(batch_size)
        segment(bundle, trained / "model.pt", datalist_dir, out, batch_size=batch_size, threshold=0.05)
        found.append({p.name: load_echo(p)[0] for p in out.glob("*.nii.gz") if "spread" not in p.name})
    assert found[0].keys() == found[1].keys() and len(found[0]) == 4
    assert all((found[0][name] == found[1][name]).float().mean() > 0.999 for name in found[0])


@pytest.mark.parametrize("config", ["inference", "evaluate", "calibrate", "sensitivity", "export", "deploy"])
def test_properties_of_inference(bundle: str, config: str, trained: Path, datalist_dir: Path, tmp_path: Path) -> None:
    """Every config that is read after inference.yaml has the properties that MONAI requires."""
    data = {"dataset_dir": datalist_dir, "output_dir": tmp_path, "checkpoint_path": trained / "model.pt"}
    run = workflow(bundle, ["inference", config][config == "inference" :], **data)
    assert run.check_properties() == []
    assert not list(tmp_path.iterdir())  # making all the parts writes nothing


@pytest.mark.parametrize("config", ["train", "train_small", "train_published", "train_simulated", "multi_gpu_train"])
def test_properties_of_training(
    bundle: str, config: str, datalist_dir: Path, tmp_path: Path, one_process: None
) -> None:
    """Every config that is read after train.yaml has these properties too."""
    overrides = {"dataset_dir": datalist_dir, "output_dir": tmp_path, "image_encoder_weights": None}
    if config == "multi_gpu_train":
        overrides["backend"] = "gloo"
    run = workflow(bundle, ["train", config][config == "train" :], "train", **overrides)
    try:
        assert run.check_properties() == []
    finally:
        run.finalize()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fault", ["no_image", "fifth_class", "other_shape", "empty_folder", "other_network"])
def test_bad_input_is_one_line_and_nothing_is_written(
    bundle: str, trained: Path, datalist_dir: Path, tmp_path: Path, fault: str
) -> None:
    import nibabel as nib

    out, images = tmp_path / "out", tmp_path / "images"
    overrides: dict[str, Any] = {"dataset_dir": images, "checkpoint_path": trained / "model.pt"}
    configs, kind = ["inference"], "infer"
    images.mkdir()
    if fault == "no_image":
        three_formats(tmp_path / "formats")
        shutil.copytree(tmp_path / "formats", images, dirs_exist_ok=True)
        (images / "z.png").write_text("not an image")
        match = "z.png: not a readable PNG"
    elif fault == "empty_folder":
        match = "no images"
    elif fault == "other_network":
        other = {"echo_cris": "echo_clipseg", "echo_clipseg": "echo_cris"}[bundle]
        weights = tiny_weights(other, tmp_path / "other.pt")
        overrides = {"dataset_dir": datalist_dir, "checkpoint_path": weights}
        match = "other.pt"
    else:
        configs, kind = ["train"], "train"
        bad = np.full((20, 30), 4, np.uint8) if fault == "fifth_class" else np.zeros((20, 31), np.uint8)
        content = {}
        for name, section, label_map in (("a", "training", np.zeros((20, 30), np.uint8)), ("b", "validation", bad)):
            nib.save(nib.Nifti1Image(np.ones((20, 30), np.uint8), np.eye(4)), images / f"{name}.nii.gz")
            nib.save(nib.Nifti1Image(label_map, np.eye(4)), images / f"{name}_gt.nii.gz")
            content[section] = [{"image": f"{name}.nii.gz", "label": f"{name}_gt.nii.gz", "patient": name}]
        match = r"got \[4\]" if fault == "fifth_class" else r"image is \(30, 20\) but label map is \(31, 20\)"
        (images / "datalist.json").write_text(json.dumps(content))
        overrides = {"dataset_dir": images}
    with pytest.raises((ValueError, RuntimeError)) as caught:
        workflow(bundle, configs, kind, output_dir=out, **overrides).run()
    assert re.search(match, said_by(caught)) and "\n" not in said_by(caught)
    assert not out.exists()


@both
def test_configs_agree_with_each_other(bundle: str) -> None:
    """Settings that must be the same in training and inference are the same."""
    training, inference = read_yaml(bundle, "train"), read_yaml(bundle, "inference")
    published = PUBLISHED_FACTS[bundle.removeprefix("echo_")]
    for key in {*published, "prompt_level", "threshold"} - {"has_view_head"}:
        assert training[key] == inference[key], key
    # a training whose data does not teach the head leaves it out, whatever it starts from
    assert (training["has_view_head"], inference["has_view_head"]) == (False, None)
    for key, value in inference["network_def"].items():
        assert training["network_def"][key] == value
    assert training["facts"]["said"] == inference["facts"]["said"] == {key: f"@{key}" for key in published}
    architectures = [part["architecture"] for part in (training["facts"], inference["facts"], training["network_def"])]
    assert len({*architectures}) == 1

    def geometry(transforms: list[dict[str, Any]]) -> dict[str, Any]:
        letterbox = next(t for t in transforms if t["_target_"].endswith("Letterboxd"))
        return {key: value for key, value in letterbox.items() if key != "keep_meta"}

    pipelines = [training["train"]["preprocessing"], training["validate"]["preprocessing"], inference["preprocessing"]]
    first, *others = (geometry(pipeline["transforms"]) for pipeline in pipelines)
    assert all(other == first for other in others)


def test_bundles_differ_only_where_the_networks_do() -> None:
    for name in ("train", "inference", "evaluate", "calibrate"):
        cris, clipseg = read_yaml("echo_cris", name), read_yaml("echo_clipseg", name)
        assert [key for key in cris if key != "mask_padding"] == list(clipseg)
        differing = {key for key in clipseg if cris[key] != clipseg[key]}
        assert differing <= {
            "facts", "batch_size", "learning_rate", "encoder_learning_rate_scale", "network_def", "recipe", "train",
        }  # fmt: skip
    for name in ("export", "deploy", "multi_gpu_train"):
        assert read_yaml("echo_cris", name) == read_yaml("echo_clipseg", name)


@both
def test_metadata_names_the_classes_and_the_published_size(bundle: str) -> None:
    meta = json.loads((BUNDLES_DIR / bundle / "configs" / "metadata.json").read_text())
    assert meta["network_data_format"]["outputs"]["pred"]["channel_def"] == CLASS_NAMES
    size = PUBLISHED_FACTS[bundle.removeprefix("echo_")]["image_size"]
    assert meta["network_data_format"]["inputs"]["image"]["spatial_shape"] == [size, size]


@both
@pytest.mark.parametrize("preset", ["tiny", pytest.param("published", marks=pytest.mark.slow)])
def test_network_takes_and_gives_what_metadata_says(bundle: str, preset: str) -> None:
    from monai.bundle import verify_net_in_out

    configs = BUNDLES_DIR / bundle / "configs"
    files = {"meta_file": str(configs / "metadata.json"), "config_file": str(configs / "inference.yaml")}
    verify_net_in_out("network_def", device="cpu", preset=preset, **files)
