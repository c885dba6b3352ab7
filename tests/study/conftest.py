"""Provide tiny bundles whose stages take no time, and a fabricated run of a study."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from synboost_monai.evaluation.per_case import case_metrics, write_metrics_csv, write_summary
from synboost_monai.evaluation.sensitivity import right_dice, sensitivity_frame, sensitivity_rows, summarise_sensitivity
from synboost_monai.model_card import new_card, write_model
from synboost_monai.prompts.variations import PromptVariations
from synboost_monai.structures import STRUCTURES
from synboost_monai.study.dag import Study
from synboost_monai.study.settings import read_study

TRAIN = """\
bundle_root: .
dataset_dir: data
output_dir: models
synthetic_dir: null
pseudo_labelled_dir: null
init_checkpoint: null
device: cpu
seed: 0
preset: published
image_size: 352
prompt_level: P6
domain_word: false
balance_synthetic: false
freeze_encoders: false
max_epochs: 100
learning_rate: 0.002
augment: true
network_def:
  _target_: torch.nn.Conv2d
  in_channels: 1
  out_channels: 1
  kernel_size: 1
run:
- _target_: fake_stage.train
  output_dir: '@output_dir'
  init_checkpoint: '@init_checkpoint'
  max_epochs: '@max_epochs'
"""
EVALUATE = """\
bundle_root: .
dataset_dir: data
output_dir: eval
checkpoint_path: model.pt
section: testing
labelled_dir: null
device: cpu
seed: 0
preset: published
image_size: 352
prompt_level: P6
domain_word: false
sections: [training, validation]
num_variations: 5
perturbation_strength: 1.0
start_strength: 1.0
network_def:
  _target_: torch.nn.Conv2d
  in_channels: 1
  out_channels: 1
  kernel_size: 1
run:
- _target_: fake_stage.evaluate
  dataset_dir: '@dataset_dir'
  output_dir: '@output_dir'
  checkpoint_path: '@checkpoint_path'
  section: '@section'
"""
FAKE_STAGE = """\
from pathlib import Path

from synboost_monai.data import read_datalist
from synboost_monai.files import atomic_write_text, image_stem, read_plane
from synboost_monai.evaluation.per_case import case_metrics, write_metrics_csv, write_summary


def train(output_dir, init_checkpoint, max_epochs):
    path = Path(output_dir)
    with open(path.parent / "calls.txt" if path.parent.is_dir() else "calls.txt", "a") as file:
        file.write("train\\n")
    atomic_write_text(path / "model.pt", f"{init_checkpoint} {max_epochs}")
    if max_epochs == 13:
        raise ValueError("fake_stage.py: 13 epochs bring bad luck; take 12")


def evaluate(dataset_dir, output_dir, checkpoint_path, section):
    rows = []
    for item in read_datalist(dataset_dir, section):
        truth = read_plane(item["label"])
        facts = {k: item.get(k) for k in ("patient", "view", "phase")} | {"case": image_stem(item["image"])}
        rows += [facts | row for row in case_metrics(truth.pixels, truth.pixels, truth.spacing_mm)]
    write_metrics_csv(Path(output_dir, "metrics.csv"), rows)
    write_summary(
        Path(output_dir, "summary.json"), rows, dataset_dir=dataset_dir, section=section, checkpoint_path=checkpoint_path
    )
"""


@pytest.fixture
def tiny_bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder with the three bundles' names, each with stages that only write their files."""
    root = _write_bundles(tmp_path / "bundles")
    monkeypatch.setenv("SYNBOOST_BUNDLES", str(root))
    return root


def _write_bundles(root: Path) -> Path:
    """Write the three bundles into a folder."""
    for name in ("echo_semantic_diffusion", "echo_cris", "echo_clipseg"):
        configs = root / name / "configs"
        configs.mkdir(parents=True)
        (configs / "train.yaml").write_text(TRAIN)
        for config in ("evaluate", "inference", "sensitivity", "pseudo_label"):
            (configs / f"{config}.yaml").write_text(EVALUATE)
        (configs / "metadata.json").write_text(json.dumps({"version": "0.1.0"}))
        (root / name / "fake_stage.py").write_text(FAKE_STAGE)
    return root


STUDY = textwrap.dedent(
    """\
    description: A study for tests <with> & signs.
    data:
      phantom: {num_patients: 5, image_height: 64, num_frames: 2}
    segmenters:
      models: [cris]
      strategies: [real]
      prompts: [P1]
      both: {preset: tiny, image_size: 32}
      train: {max_epochs: 2}
    """
)


@pytest.fixture
def study_path(tmp_path: Path) -> Path:
    """Write a small study as a YAML file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(STUDY)
    return path


def _write_image(path: Path, pixels: np.ndarray, row_spacing_mm: float = 0.25) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(pixels.T.astype(np.uint8), np.diag([0.5, row_spacing_mm, 1, 1])), path)


@pytest.fixture
def run_dir(small_run_dir: Path, tmp_path: Path) -> Path:
    """Return a copy of `small_run_dir` that a test may change."""
    return Path(shutil.copytree(small_run_dir, tmp_path / "run"))


@pytest.fixture(scope="module")
def small_run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a fully fabricated run: two test images, two models, three strategies, one prompt and seed. Tests share it."""
    settings = {
        "segmenters.models": ["cris", "clipseg"],
        "segmenters.strategies": ["real", "synthetic", "synthetic_then_real"],
        "segmenters.prompts": "P2",
        "diffusion.train.max_epochs": 3,
    }
    return _fabricated_run(tmp_path_factory.mktemp("small"), settings)


@pytest.fixture(scope="module")
def simulated_run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the same with strategies of simulated hearts, encoders frozen or not, and histories of the trainings. Tests share it."""
    folder = tmp_path_factory.mktemp("simulated")
    settings = {
        "segmenters.strategies": ["real", "simulated_then_real"],
        "segmenters.frozen": [False, True],
        "segmenters.simulated_weights.cris": str(_write_simulated_weights(folder / "weights" / "model.pt")),
    }
    run = _fabricated_run(folder, settings)
    for path in run.glob("segmenters/cris/*real/**/seed0"):
        _write_history(path / "history.csv", 0.9, 30.0 if "simulated_then_real" in path.parts else 60.0)
    return run


@pytest.fixture(scope="session")
def simulated_weights() -> Callable[..., Path]:
    """Return `_write_simulated_weights`."""
    return _write_simulated_weights


def _write_simulated_weights(path: Path, value: float = 0.0, **facts: object) -> Path:
    """Write a model.pt of a single number that says it was trained on simulated hearts."""
    known = {"architecture": "cris", "preset": "tiny", "image_size": 32, **facts}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_model({"weight": torch.tensor([value])}, path, new_card(known, {"simulation_seed": 1}))
    return path


def _fabricated_run(folder: Path, settings: dict) -> Path:
    """Write a run of a study with these settings: two test images, moved label maps as predictions."""
    study, run = _study(folder, settings), folder / "run"
    generator = np.random.default_rng(0)

    truth = np.zeros((40, 64), np.uint8)
    truth[5:20, 10:30], truth[5:20, 30:36], truth[24:36, 10:30] = 1, 2, 3
    items = []
    for phase, long_phase in (("ED", "end_diastole"), ("ES", "end_systole")):
        stem = f"patient0001_4CH_{phase}"
        _write_image(run / "phantom" / f"{stem}.nii.gz", generator.integers(0, 255, truth.shape))
        _write_image(run / "phantom" / f"{stem}_gt.nii.gz", truth)
        item = {"image": f"../phantom/{stem}.nii.gz", "label": f"../phantom/{stem}_gt.nii.gz", "patient": "patient0001"}
        items.append(item | {"view": "apical_four_chamber", "phase": long_phase})
    for folder in ("real", "examples"):
        (run / folder).mkdir()
        (run / folder / "datalist.json").write_text(json.dumps({"testing": items}))
    (run / "real" / "summary.txt").write_text("patient0007: image is cut off <here>\n")
    _write_timings(run, {"prepare": ("prepare the data", "synboost prepare phantom real", 7.25, 2)})
    (run / "study.yaml").write_text(yaml.safe_dump({"name": "tiny", **study.settings}))

    def write_evaluation(folder: Path, shift: int) -> None:
        rows = []
        for item in items:
            case = Path(item["image"]).name.removesuffix(".nii.gz")
            pred = np.roll(truth, shift, axis=1)
            _write_image(folder / "label_maps" / f"{case}.nii.gz", pred)
            facts = {"case": case, "patient": "patient0001", "view": item["view"], "phase": item["phase"]}
            rows += [facts | row for row in case_metrics(pred, truth, (0.25, 0.5))]
        _write_evaluation(folder, rows, shift)

    for shift, segmenter in enumerate(study.segmenters):
        write_evaluation(run / segmenter.output_dir / "evaluation", shift)
    for segmenter in study.example_segmenters:
        write_evaluation(run / "examples" / segmenter.model, 2)
    return run


GRID = {
    "segmenters.strategies": ["real", "synthetic", "synthetic_then_real", "real_and_synthetic"],
    "segmenters.prompts": ["P1", "P2"],
    "segmenters.frozen": [False, True],
    "segmenters.patients": [4, "all"],
    "segmenters.seeds": [0, 1],
    "segmenters.sensitivity": True,
}
"""Axes of `grid_run_dir`: 4 x 2 x 2 x 2 x 2 segmenters."""
GAINS = {"real": 0.0, "synthetic": -0.08, "synthetic_then_real": 0.02, "real_and_synthetic": 0.01}
"""Strategy -> Dice above that of real."""
NUM_TEST_PATIENTS = 5


@pytest.fixture(scope="module")
def grid_run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an unfinished fabricated run of every axis but folds: 40 of 64 segmenters, encoders frozen at P2 and all patients alone.

    Metrics are drawn; one segmenter of each strategy has label maps.

    Dice falls with fewer patients, frozen encoders and synthetic data alone; each kept segmenter misses one left atrium of patient0001.
    Shared by tests.
    """
    folder = tmp_path_factory.mktemp("grid")
    study, run = _study(folder, GRID), folder / "run"
    generator = np.random.default_rng(1)
    sizes, items = _write_hearts(run, generator)
    others = [{"image": f"x{i}.nii.gz", "patient": f"patient9{i:03d}"} for i in range(10)]
    content = {"training": others[:8], "validation": others[8:], "testing": list(items.values())}
    (run / "real").mkdir()
    (run / "real" / "datalist.json").write_text(json.dumps(content))
    (run / "study.yaml").write_text(yaml.safe_dump({"name": "grid", **study.settings}))
    stages = [stage for stage in study.stages.values() if stage.kind != "report"]
    _write_timings(run, {s.name: (s.title, f"synboost {' '.join(s.command)}", 60.0, 1) for s in stages})
    difficulty = {case: generator.normal(0, 0.02, len(STRUCTURES)) for case in items}
    for s in study.segmenters:
        if s.frozen and (s.prompt == "P1" or s.patients == 4):
            continue
        level = 0.88 + GAINS[s.strategy] - 0.06 * (s.patients == 4) - 0.03 * s.frozen - 0.02 * (s.prompt == "P1")
        level += generator.normal(0, 0.004)
        folder = run / s.output_dir
        is_kept = s.prompt == "P2" and not s.frozen and s.patients == "all" and s.seed == 0
        rows = []
        for case, item in items.items():
            facts = {"case": case, **{key: item[key] for key in ("patient", "view", "phase")}}
            if is_kept:
                is_missing = case == "patient0001_2CH_ED"
                pred = _heart(sizes[case] * (level + 0.1 + generator.normal(0, 0.02)))
                pred[pred == 3] = 0 if is_missing else 3
                _write_image(folder / "evaluation" / "label_maps" / f"{case}.nii.gz", pred, 0.5)
                _write_doubt(folder / "evaluation" / "label_maps" / f"{case}.json", is_missing)
                found = case_metrics(pred, _heart(sizes[case]), (0.5, 0.5))
                rows += [{**facts, **row, "verdict": "review" if is_missing else "accept"} for row in found]
            else:
                rows += _drawn_rows(facts, level + difficulty[case], generator)
        _write_evaluation(folder / "evaluation", rows, level, seed=s.seed)
        _write_history(folder / "history.csv", level, 30.0 if s.strategy == "synthetic_then_real" else 60.0)
    for s in study.sensitivity_segmenters:
        _write_sensitivity(run / s.output_dir / "sensitivity", items, sizes)
    return run


def _study(folder: Path, settings: dict) -> Study:
    """Return `STUDY` with other settings, checked against the tiny bundles."""
    (folder / "study.yaml").write_text(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SYNBOOST_BUNDLES", str(_write_bundles(folder / "bundles")))
        return read_study(folder / "study.yaml", settings=settings)


def _write_timings(run: Path, timings: dict[str, tuple[str, str, float, int]]) -> None:
    """Write timing/NAME.json of stages: title, command, seconds, attempts."""
    (run / "timing").mkdir(parents=True)
    for name, (title, command, seconds, attempts) in timings.items():
        timing = {"name": name, "title": title, "command": command, "seconds": seconds, "attempts": attempts}
        (run / "timing" / f"{name}.json").write_text(json.dumps(timing))


def _write_evaluation(folder: Path, rows: list[dict], weights: object, seed: int = 0) -> None:
    """Write metrics.csv and summary.json, and weights beside the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model = folder.parent / "model.pt"
    model.write_bytes(str(weights).encode())
    write_metrics_csv(folder / "metrics.csv", rows)
    write_summary(
        folder / "summary.json", rows, dataset_dir="real", section="testing", seed=seed, checkpoint_path=model
    )


def _write_hearts(run: Path, generator: np.random.Generator) -> tuple[dict[str, float], dict[str, dict]]:
    """Write test images, and return case -> size of its heart, case -> item."""
    sizes, items = {}, {}
    for number in range(1, NUM_TEST_PATIENTS + 1):
        for view, long_view in (("2CH", "apical_two_chamber"), ("4CH", "apical_four_chamber")):
            for phase, long_phase in (("ED", "end_diastole"), ("ES", "end_systole")):
                stem = f"patient000{number}_{view}_{phase}"
                sizes[stem] = (0.85 + 0.05 * number) * (0.8 if phase == "ES" else 1.0)
                truth = _heart(sizes[stem])
                image = 40 + 60 * (truth == 2) + generator.integers(0, 60, truth.shape)
                _write_image(run / "phantom" / f"{stem}.nii.gz", image, 0.5)
                _write_image(run / "phantom" / f"{stem}_gt.nii.gz", truth, 0.5)
                items[stem] = {
                    "image": f"../phantom/{stem}.nii.gz",
                    "label": f"../phantom/{stem}_gt.nii.gz",
                    "patient": f"patient000{number}",
                    "view": long_view,
                    "phase": long_phase,
                    "image_quality": ("good", "medium", "poor")[number % 3],
                }
    return sizes, items


def _heart(size: float) -> np.ndarray:
    """Draw a label map of ellipses with 0.5 mm pixels."""
    rows, columns = np.mgrid[:96, :72]

    def ellipse(row: float, height: float, width: float) -> np.ndarray:
        return ((rows - row) / height) ** 2 + ((columns - 36) / width) ** 2 <= 1

    label_map = np.zeros(rows.shape, np.uint8)
    label_map[ellipse(40, 28 * size + 6, 13 * size + 6) & (rows < 56)] = 2
    label_map[ellipse(40, 28 * size, 13 * size) & (rows < 57)] = 1
    label_map[ellipse(70, 13 * size, 12 * size) & (rows >= 58)] = 3
    return label_map


def _drawn_rows(facts: dict, levels: np.ndarray, generator: np.random.Generator) -> list[dict]:
    """Draw rows of metrics.csv around a Dice of each structure."""
    rows = []
    for structure, level in zip(STRUCTURES, levels):
        dice = float(np.clip(level + generator.normal(0, 0.015), 0, 1))
        hd95 = 40 * (1 - dice)
        metrics = {"dice": dice, "iou": dice / (2 - dice), "hd_mm": 1.5 * hd95, "hd95_mm": hd95, "asd_mm": hd95 / 3}
        empty = {"is_empty_prediction": False, "is_empty_truth": False}
        rows.append({**facts, "structure": structure.name, **metrics, **empty})
    return rows


def _write_history(path: Path, level: float, num_updates: float) -> None:
    """Write history.csv of a Dice that approaches its level with a time constant of so many updates."""
    updates = np.arange(1, 13) * 20
    dice = level * (1 - np.exp(-updates / num_updates))
    lines = [f"{u},{i + 1},{d:.6f},{1 - d:.6f}" for i, (u, d) in enumerate(zip(updates, dice))]
    path.write_text("\n".join(["iteration,epoch,val_mean_dice,val_loss", *lines]) + "\n")


def _write_doubt(path: Path, is_review: bool) -> None:
    """Write the verdict of a label map."""
    reasons = [{"code": "empty", "structure": "left_atrium", "message": "no left atrium was found"}] * is_review
    path.write_text(json.dumps({"verdict": "review" if is_review else "accept", "reasons": reasons}))


def _write_sensitivity(folder: Path, items: dict[str, dict], sizes: dict[str, float]) -> None:
    """Write sensitivity.csv and .json: a wrong structure of the heart moves the mask there, other words move nothing."""
    variations, rows = PromptVariations("P2"), []
    named = {s.name: s.class_index for s in STRUCTURES}
    for case in list(items)[:8]:
        variants, truth = variations(items[case]), torch.from_numpy(_heart(sizes[case]))
        wanted = [v.wrong if v.attribute == "structure" and v.wrong in named else v.structure for v in variants]
        masks = torch.stack([truth == named[name] for name in wanted])
        facts = {"case": case, **{key: items[case][key] for key in ("patient", "view", "phase")}}
        rows += [facts | row for row in sensitivity_rows(masks, variants, truth)]
    frame = sensitivity_frame(rows)
    folder.mkdir(parents=True)
    frame.to_csv(folder / "sensitivity.csv", index=False, float_format="%.6f")
    record = {
        "summary": summarise_sensitivity(frame, num_resamples=100),
        "right_dice": right_dice(frame),
        "num_untested_images": {},
        "threshold": 0.5,
        "section": "testing",
        "dataset_dir": "real",
        "num_images": 8,
        "num_patients": 2,
        "seed": 0,
        "checkpoint_sha256": "0123456789abcdef",
        "command": "synboost run echo_cris sensitivity",
    }
    (folder / "sensitivity.json").write_text(json.dumps(record))
