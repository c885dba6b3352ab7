"""The commands of the page Getting started, one after another, as they stand there but for their sizes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from synboost_monai.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/getting_started.md"

SMALLER = {
    r"--num_patients \d+": "--num_patients 4 --image_height 64 --num_frames 2",
    r"--preset small": "--preset tiny",
    r"--image_size \d+": "--image_size 32",
    r"--max_epochs \d+": "--max_epochs 1",
    r"^synboost synthesise +": "synboost synthesise --num_variations 1 --num_inference_steps 2 ",
}
"""What the page says -> what runs here."""


@pytest.mark.slow
def test_commands_of_getting_started_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL)
    commands = [
        line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.startswith("synboost ")
    ]
    assert len(commands) == 9
    for command in commands:
        for pattern, replacement in SMALLER.items():
            command = re.sub(pattern, replacement, command)
        main(shlex.split(command)[1:])
    steps = tmp_path / "runs/steps"
    assert (steps / "synthetic/contact_sheet.png").is_file()
    assert (steps / "scores/metrics.csv").is_file() and (steps / "scores/summary.json").is_file()
    for folder in ("masks", "atria"):
        assert (
            len(list((steps / folder).glob("*_E[DS].nii.gz"))) == len(list((steps / folder).glob("*_E[DS].json"))) > 0
        )
