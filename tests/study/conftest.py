"""Provide tiny bundles whose stages take no time, and a fabricated run of a study."""

from __future__ import annotations

import json
import shutil
import textwrap
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from synboost_monai.evaluation.per_case import case_metrics, write_metrics_csv, write_summary
from synboost_monai.evaluation.sensitivity import sensitivity_rows
from synboost_monai.model_card import new_card, write_model
from synboost_monai.prompts.variations import PromptVariations
from synboost_monai.records import PHASES, VIEWS
from synboost_monai.structures import STRUCTURES
from synboost_monai.study.dag import Study
from synboost_monai.study.settings import read_study
from tests.sensitivity_run import write_sensitivity_run

CONFIG = {
    "bundle_root": ".",
    "dataset_dir": "data",
    "device": "cpu",
    "seed": 0,
    "preset": "published",
    "image_size": 352,
    "prompt_level": "P6",
    "domain_word": False,
    "network_def": {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 1, "kernel_size": 1},
}
"""What every config of the tiny bundles has."""
TRAIN = {
    **dict.fromkeys(("synthetic_dir", "pseudo_labelled_dir", "init_checkpoint")),
    **dict.fromkeys(("balance_synthetic", "freeze_encoders"), False),
    **{"output_dir": "models", "max_epochs": 100, "learning_rate": 0.002, "augment": True},
}
EVALUATE = {
    **{"output_dir": "eval", "checkpoint_path": "model.pt", "section": "testing"},
    **{"labelled_dir": None, "num_variations": 5},
    **{"sections": ["training", "validation"], "perturbation_strength": 1.0, "start_strength": 1.0},
}
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
        (configs / "train.yaml").write_text(_config(TRAIN, "train", "output_dir", "init_checkpoint", "max_epochs"))
        for config in ("evaluate", "inference", "sensitivity", "pseudo_label"):
            keys = ("dataset_dir", "output_dir", "checkpoint_path", "section")
            (configs / f"{config}.yaml").write_text(_config(EVALUATE, "evaluate", *keys))
        (configs / "metadata.json").write_text(json.dumps({"version": "0.1.0"}))
        (root / name / "fake_stage.py").write_text(FAKE_STAGE)
    return root


def _config(settings: dict, function: str, *keys: str) -> str:
    """Return a config that calls a function of `fake_stage` with some of its settings."""
    run = {"_target_": f"fake_stage.{function}", **{key: f"@{key}" for key in keys}}
    return yaml.safe_dump({**CONFIG, **settings, "run": [run]})


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


def _write_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(pixels.T.astype(np.uint8), np.diag([0.5, 0.5, 1, 1])), path)


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
        "segmenters.simulated_weights.cris": str(write_simulated_weights(folder / "weights" / "model.pt")),
    }
    run = _fabricated_run(folder, settings)
    for path in run.glob("segmenters/cris/*real/**/seed0"):
        _write_history(path / "history.csv", 0.9, 30.0 if "simulated_then_real" in path.parts else 60.0)
    return run


def write_simulated_weights(path: Path, value: float = 0.0, **facts: object) -> Path:
    """Write a model.pt of a single number that says it was trained on simulated hearts."""
    known = {"architecture": "cris", "preset": "tiny", "image_size": 32, **facts}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_model({"weight": torch.tensor([value])}, path, new_card(known, {"simulation_seed": 1}))
    return path


def _fabricated_run(folder: Path, settings: dict) -> Path:
    """Write a run of a study with these settings: two test images, moved label maps as predictions."""
    study, run = _study(folder, settings), folder / "run"
    sizes, items = _write_hearts(run, np.random.default_rng(0), 1, ["4CH"])
    for folder in ("real", "examples"):
        (run / folder).mkdir()
        (run / folder / "datalist.json").write_text(json.dumps({"testing": list(items.values())}))
    (run / "real" / "summary.txt").write_text("patient0007: image is cut off <here>\n")
    _write_timings(run, {"prepare": ("prepare the data", "synboost prepare phantom real", 7.25, 2)})
    (run / "study.yaml").write_text(yaml.safe_dump({"name": "tiny", **study.settings}))

    def write_evaluation(folder: Path, shift: int) -> None:
        rows = []
        for case, item in items.items():
            truth = _heart(sizes[case])
            pred = np.roll(truth, shift, axis=1)
            _write_image(folder / "label_maps" / f"{case}.nii.gz", pred)
            rows += [{"case": case, **_known(item), **row} for row in case_metrics(pred, truth, (0.5, 0.5))]
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
    sizes, items = _write_hearts(run, generator, 5, ["2CH", "4CH"])
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
            facts = {"case": case, **_known(item)}
            if is_kept:
                is_missing = case == "patient0001_2CH_ED"
                pred = _heart(sizes[case] * (level + 0.1 + generator.normal(0, 0.02)))
                pred[pred == 3] = 0 if is_missing else 3
                _write_image(folder / "evaluation" / "label_maps" / f"{case}.nii.gz", pred)
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


def _known(item: dict) -> dict:
    return {key: item[key] for key in ("patient", "view", "phase")}


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


def _write_hearts(
    run: Path, generator: np.random.Generator, num_patients: int, views: list[str]
) -> tuple[dict[str, float], dict[str, dict]]:
    """Write test images, and return case -> size of its heart, case -> item."""
    sizes, items = {}, {}
    for number in range(1, num_patients + 1):
        for view in views:
            for phase, long_phase in PHASES.items():
                stem = f"patient000{number}_{view}_{phase}"
                sizes[stem] = (0.85 + 0.05 * number) * (0.8 if phase == "ES" else 1.0)
                truth = _heart(sizes[stem])
                image = 40 + 60 * (truth == 2) + generator.integers(0, 60, truth.shape)
                _write_image(run / "phantom" / f"{stem}.nii.gz", image)
                _write_image(run / "phantom" / f"{stem}_gt.nii.gz", truth)
                items[stem] = {
                    "image": f"../phantom/{stem}.nii.gz",
                    "label": f"../phantom/{stem}_gt.nii.gz",
                    "patient": f"patient000{number}",
                    "view": VIEWS[view],
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
        facts = {"case": case, **_known(items[case])}
        rows += [facts | row for row in sensitivity_rows(masks, variants, truth)]
    write_sensitivity_run(folder, rows)
