"""Test scripts/compare_samplers.py: its commands exist, and its table agrees with the quality files."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from synboost_monai.bundle_run import check_overrides, config_files
from synboost_monai.model_card import write_model
from tests.scripts import load_script
from tests.tiny import tiny_card, tiny_network


@pytest.fixture
def script() -> ModuleType:
    return load_script("compare_samplers")


def write_quality(folder: Path, dice: dict[str, float]) -> None:
    """Write the part of the results of `synboost evaluate echo_semantic_diffusion` that is read; `dice`: case -> Dice."""
    folder.mkdir(parents=True)
    rows = [
        {"case": case, "patient": case[:2], "structure": structure, "dice": value, "is_synthetic": True}
        for case, value in dice.items()
        for structure in ("a", "b")
    ]
    rows.append({"case": "real", "patient": "07", "structure": "a", "dice": 0.0, "is_synthetic": False})
    pd.DataFrame(rows).to_csv(folder / "metrics.csv", index=False)
    quality: dict[str, Any] = {
        "faithfulness": {"real_mean_dice": 0.9},
        "fid": {"value": 120.0, "floor": 100.0},
        "mmd": {"value": 0.01},
        "speckle": {"myocardium": {"snr": {"synthetic": 1.5, "real": 1.9}}},
        "spectrum_distance_db": 0.8,
        "spectrum_distance_floor_db": 0.3,
        "spectrum_high_frequency_db": -0.5,
    }
    (folder / "quality.json").write_text(json.dumps(quality))


def test_commands_exist_and_differences_are_by_image(
    script: ModuleType,
    datalist_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The images are not drawn here, but for the seconds that they take."""
    calls: list[tuple[str, dict[str, object]]] = []
    dice = {
        "ancestral_4": {"01_x": 0.80, "02_x": 0.90, "02_y": 0.70},
        "ddim_2_segments__student": {"02_y": 0.71, "01_x": 0.82, "02_x": 0.90},
    }
    for name in ("teacher", "student"):
        (tmp_path / name).mkdir()
        network = tiny_network("echo_semantic_diffusion")
        write_model(network.state_dict(), tmp_path / name / "model.pt", tiny_card("echo_semantic_diffusion"))
    rows = ["ancestral:4", f"ddim:2:segments::{tmp_path}/student/model.pt"]

    def call(verb: str, *words: str, **flags: Any) -> None:
        calls.append((verb, flags))
        if verb == "evaluate":
            write_quality(Path(flags["output_dir"]), dice[Path(flags["output_dir"]).parent.name])

    monkeypatch.setattr(script, "call", call)
    arguments = [
        f"--dataset_dir={datalist_dir}",
        f"--checkpoint_path={tmp_path}/teacher/model.pt",
        "--sections=training",
    ]
    arguments += [
        "--segmenter_checkpoint=s.pt",
        f"--output_dir={tmp_path}",
        f"--rows={','.join(rows)}",
        "--preset=tiny",
    ]
    arguments += ["--image_size=32", "--repeats=1"]
    monkeypatch.setattr(sys, "argv", ["compare_samplers.py", *arguments])
    script.main()

    assert [verb for verb, _ in calls] == ["synthesise", "evaluate"] * 2
    for verb, flags in calls:
        config = {"synthesise": "inference", "evaluate": "evaluate"}[verb]
        check_overrides(config_files("echo_semantic_diffusion", config), {k: str(v) for k, v in flags.items()})
    assert calls[2][1]["sampler"] == "ddim" and calls[2][1]["timestep_spacing"] == "segments"
    assert [calls[i][1]["checkpoint_path"] for i in (0, 2)] == [
        f"{tmp_path}/{n}/model.pt" for n in ("teacher", "student")
    ]
    assert calls[0][1]["perturbation_strength"] == 0.0 and calls[0][1]["seed"] == calls[2][1]["seed"]

    first, second = json.loads((tmp_path / "samplers.json").read_text())["rows"]
    assert 0 < second["seconds"] < first["seconds"]
    assert first["mean_dice"] == pytest.approx(80) and first["difference"] == 0
    assert second["difference"] == pytest.approx((2 + 0 + 1) / 3)
    assert second["difference_low"] == pytest.approx(0.5) and second["difference_high"] == pytest.approx(
        2
    )  # by patient
    assert second["num_images"] == 3 and second["spectrum_db"] == 0.8
    printed = capsys.readouterr().out
    assert f"| {rows[1]} | 81.00 | +1.00 [+0.50, +2.00] | 0.80 | -0.50 | 120.0 | 0.0100 | 1.50 |" in printed
    assert printed == (tmp_path / "samplers.md").read_text()

    script.main()  # what is judged is not judged again
    assert [verb for verb, _ in calls[4:]] == ["synthesise", "synthesise"]
