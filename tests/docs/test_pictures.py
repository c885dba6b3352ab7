"""Test scripts/pictures.py: a row for each of two examples of a run, every structure in its colour; hearts above their outlines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from synboost_monai.structures import STRUCTURES
from tests.scripts import load_script

ROOT = Path(__file__).resolve().parents[2]


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(pixels.astype(np.uint8).T, np.eye(4)), path)


def test_picture_of_a_run(tmp_path: Path) -> None:
    examples = tmp_path / "run/examples"
    items = []
    for name in ("a", "b", "c"):
        label_map = np.repeat(np.repeat(np.arange(4).reshape(2, 2), 16, 0), 16, 1)
        write(examples / f"images/{name}.nii.gz", np.full((32, 32), 100))
        write(examples / f"labels/{name}.nii.gz", label_map)
        for model in ("cris", "clipseg"):
            write(examples / f"{model}/label_maps/{name}.nii.gz", label_map)
        items.append({"image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz"})
    (examples / "datalist.json").write_text(json.dumps({"testing": items}), encoding="utf-8")
    output = tmp_path / "out/picture.png"
    command = [sys.executable, str(ROOT / "scripts/pictures.py"), "quickstart", str(tmp_path / "run"), str(output)]
    subprocess.run(command, check=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"})
    pixels = np.array(Image.open(output).convert("RGB")).reshape(-1, 3)
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    found = {tuple(colour): count for colour, count in zip(colours.tolist(), counts.tolist())}
    quarters = [found.get(structure.colour, 0) for structure in STRUCTURES]
    assert min(quarters) > 1000 and max(quarters) < 1.2 * min(quarters)
    assert not list(output.parent.glob(".*"))


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    return load_script("pictures")


def test_a_missing_example_is_one_line(
    pictures: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pydicom.data.get_testdata_file", lambda *_, **__: None)
    monkeypatch.setattr(sys, "argv", ["pictures.py", "clip", "example", str(tmp_path / "a.png")])
    with pytest.raises(SystemExit) as stop:
        pictures.main()
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    assert said.startswith("pictures.py: color3d_jpeg_baseline.dcm is in the package pydicom-data; pip install")
    assert not list(tmp_path.iterdir())


def test_sheets_of_simulated_hearts_and_strangers(pictures: ModuleType) -> None:
    rows, _ = pictures.simulated_rows(num_columns=2, num_rows=1)
    assert [picture.shape for row in rows for picture in row] == [(192, 192, 3)] * 4
    for plain, outlined in zip(*rows):  # the same heart
        changed = np.any(plain != outlined, axis=-1)
        assert 0.01 < changed.mean() < 0.2
        assert {tuple(c) for c in outlined[changed].tolist()} == {s.colour for s in STRUCTURES}
    strangers, titles = pictures.stranger_rows(num_rows=1)
    assert len(strangers[0]) == len(titles) and "M-mode" in titles
