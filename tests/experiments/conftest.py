"""Tiny bundles whose stages take no time, and a fabricated run of a study."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from synboost_monai.experiments.settings import read_study
from synboost_monai.metrics.per_case import case_metrics, write_metrics_csv, write_summary

TRAIN = """\
bundle_root: .
dataset_dir: data
output_dir: models
synthetic_dir: null
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
device: cpu
seed: 0
preset: published
image_size: 352
prompt_level: P6
domain_word: false
num_variations: 5
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
from synboost_monai.io import atomic_write_text, image_stem, read_plane
from synboost_monai.metrics.per_case import case_metrics, write_metrics_csv, write_summary


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
    """Folder with the three bundles' names, each with stages that only write their files."""
    root = tmp_path / "bundles"
    for name in ("echo_semantic_diffusion", "echo_cris", "echo_clipseg"):
        configs = root / name / "configs"
        configs.mkdir(parents=True)
        (configs / "train.yaml").write_text(TRAIN)
        for config in ("evaluate", "inference", "sensitivity"):
            (configs / f"{config}.yaml").write_text(EVALUATE)
        (configs / "metadata.json").write_text(json.dumps({"version": "0.1.0"}))
        (root / name / "fake_stage.py").write_text(FAKE_STAGE)
    monkeypatch.setenv("SYNBOOST_BUNDLES", str(root))
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
    """A small study as a YAML file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(STUDY)
    return path


def _write_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(pixels.T.astype(np.uint8), np.diag([0.5, 0.25, 1, 1])), path)


@pytest.fixture
def run_dir(tmp_path: Path, tiny_bundles: Path) -> Path:
    """A run whose every file is fabricated: two test images, two models, three strategies, P2 and P7."""
    settings = {"segmenters.prompts": "P2", "diffusion.train.max_epochs": 3}
    path = tmp_path / "study_of_report.yaml"
    path.write_text(STUDY.replace("strategies: [real]", "strategies: [real, synthetic, synthetic_then_real]"))
    study = read_study(path, settings=settings | {"segmenters.models": ["cris", "clipseg"]})
    run = tmp_path / "run"
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
    (run / "timing").mkdir()
    timing = {
        "name": "prepare",
        "title": "prepare the data",
        "command": "synboost prepare phantom real",
        "seconds": 7.25,
    }
    (run / "timing" / "prepare.json").write_text(json.dumps(timing | {"attempts": 2}))
    (run / "study.yaml").write_text(yaml.safe_dump({"name": "tiny", **study.settings}))

    def write_evaluation(folder: Path, shift: int) -> None:
        rows = []
        for item in items:
            case = Path(item["image"]).name.removesuffix(".nii.gz")
            pred = np.roll(truth, shift, axis=1)
            _write_image(folder / "label_maps" / f"{case}.nii.gz", pred)
            facts = {"case": case, "patient": "patient0001", "view": item["view"], "phase": item["phase"]}
            rows += [facts | row for row in case_metrics(pred, truth, (0.25, 0.5))]
        model = folder.parent / "model.pt"
        model.write_bytes(str(shift).encode())
        write_metrics_csv(folder / "metrics.csv", rows)
        write_summary(
            folder / "summary.json", rows, dataset_dir="real", section="testing", seed=0, checkpoint_path=model
        )

    for shift, segmenter in enumerate(study.segmenters):
        write_evaluation(run / segmenter.output_dir / "evaluation", shift)
    for segmenter in study.example_segmenters:
        write_evaluation(run / "examples" / segmenter.model, 2)
    return run
