"""Print a table of every verb's message when it cannot read, cannot write, or would write over its input.

    python -m tests.doors inputs WORK                 # tiny inputs, once
    python -m tests.doors COLUMN WORK [OUT] [VERB...]   # rows `VERB | code | first line`, a column at a time

Columns: missing, same (OUT = IN), signs (`#` and `$` in every path), and into OUT, a folder that the caller has made so: readonly, full.
As root the rights of a folder count only without the capabilities: setpriv --bounding-set=-dac_override,-dac_read_search --inh-caps=-all.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from synboost_monai.__main__ import VERBS, main

SMALL = ["--preset", "small", "--image_size", "64"]
SIGNS = "a #1 $x @y %z"
"""Name of a folder that a config could take for something else."""
NOWHERE = "nowhere/in"
SECONDS = 300
"""That a verb may take; `experiment`, a study of 19 stages, ten times as long."""
Case = Callable[[str, str], Sequence[str]]
"""(folder of the inputs, output) -> words of the command."""

CASES: dict[str, Case] = {
    "phantom": lambda at, out: [out, "--num_patients", "1", "--image_height", "48", "--num_frames", "2"],
    "phantom-studies": lambda at, out: [out, "--num_studies", "1", "--image_height", "64", "--num_frames", "8"],
    "simulate": lambda at, out: [out, "--num_images", "2", "--image_size", "48"],
    "prepare": lambda at, out: [f"{at}/phantom", out],
    "subset": lambda at, out: [f"{at}/real", out, "--patients", "2"],
    "label-maps": lambda at, out: [f"{at}/real", out, "--num_maps", "1"],
    "run": lambda at, out: ["echo_cris", "inference", *_segment(at, out)],
    "train": lambda at, out: [
        *["echo_cris", "--dataset_dir", f"{at}/real", "--output_dir", out, *SMALL, "--max_epochs", "1"]
    ],
    "synthesise": lambda at, out: [
        *["--dataset_dir", f"{at}/real", "--output_dir", out, "--checkpoint_path", f"{at}/diffusion.pt", *SMALL],
        *["--num_inference_steps", "2", "--sections", "testing"],
    ],
    "merge": lambda at, out: [out, f"{at}/synthetic"],
    "segment": lambda at, out: ["echo_cris", *_segment(at, out)],
    "evaluate": lambda at, out: [
        *["echo_cris", "--dataset_dir", f"{at}/real", "--output_dir", out, "--checkpoint_path", f"{at}/cris.pt", *SMALL]
    ],
    "experiment": lambda at, out: ["quickstart", "--dataset", f"{at}/phantom", "--output", out],
    "report": lambda at, out: [out if at != NOWHERE else at],
    "compare": lambda at, out: [f"{at}/evaluation", f"{at}/evaluation", "--output", out],
    "clinical": lambda at, out: [out if "nowhere" not in at else at],
    "auto3dseg": lambda at, out: [f"{at}/input.yaml", "--output", out, "--num_epochs", "1", "--num_fold", "2"],
    "dicom": lambda at, out: [f"{at}/studies", out, "--checkpoint_path", f"{at}/cris.pt", *SMALL, "--workers", "1"],
    "listen": lambda at, out: [out, "--checkpoint_path", f"{at}/cris.pt", *SMALL, "--port", "11992"],
    "label": lambda at, out: [
        *[f"{at}/images", "--app_dir", out, "--checkpoint_path", f"{at}/cris.pt", "--dry_run", *SMALL]
    ],
    "demo": lambda at, out: ["--checkpoint_path", f"{at}/cris.pt", *SMALL, "--port", "17992"],
    "weights": lambda at, out: [
        *["convert", f"{at}/cris.pt", f"{out}/model.pt", "--architecture", "cris", "--preset", "small"]
    ],
    "package": lambda at, out: ["echo_cris", "--checkpoint_path", f"{at}/cris.pt", "--output", f"{out}/a.zip", *SMALL],
    "export": lambda at, out: [
        *["echo_cris", "--format", "torchscript", "--checkpoint_path", f"{at}/cris.pt"],
        *["--output", f"{out}/a.ts", *SMALL],
    ],
}
"""Verb -> its command; `version` reads and writes nothing."""
SAME = {
    "phantom": "phantom",
    "phantom-studies": "studies",
    "simulate": "real",
    "prepare": "phantom",
    "dicom": "studies",
    "segment": "images",
    "run": "images",
    "report": "evaluation",
    "clinical": "evaluation",
    "compare": "evaluation",
    "weights": "cris.pt",
    "package": "cris.pt",
    "export": "cris.pt",
    "merge": "synthetic",
    "experiment": "phantom",
    "label": "images",
}
"""Verb -> its input that is its output too; `real` for the others."""


def _segment(at: str, out: str) -> list[str]:
    return ["--dataset_dir", f"{at}/images", "--output_dir", out, "--checkpoint_path", f"{at}/cris.pt", *SMALL]


class TooLong(BaseException):
    """Raised if a verb takes longer than `SECONDS`, or serves and would go on."""


def ask(words: Sequence[str], seconds: int = SECONDS) -> tuple[str, str]:
    """Return the exit code and the error line of a command in this process."""

    def stop(*_: object) -> None:
        raise TooLong

    out, err, code = io.StringIO(), io.StringIO(), "0"
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(words)
    except SystemExit as error:
        code = str(error.code)
    except TooLong:
        code = "served" if words[0] in ("listen", "demo") else "too long"
    except BaseException:
        code = "1 TRACEBACK"
        err.write(traceback.format_exc())
    finally:
        signal.alarm(0)
    lines = [line for line in err.getvalue().replace("\r", "\n").splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("synboost ")]
    return code, (said or (lines[-1:] if code != "0" else out.getvalue().splitlines()[-1:]) or [""])[-1]


def column(name: str, work: Path, out: Path | None, verbs: Sequence[str]) -> None:
    """Print a row for each verb."""
    for verb in verbs or CASES:
        at, target = str(work), str((out or work / "out") / verb)
        if name == "missing":
            at = NOWHERE
        elif name in ("same", "signs"):
            at = str(work / ("same" if name == "same" else SIGNS))
            shutil.rmtree(at, ignore_errors=True)
            shutil.copytree(work / "inputs", at)
            target = f"{at}/{SAME.get(verb, 'real')}" if name == "same" else f"{at}/out"
        else:
            at = str(work / "inputs")
        words = [verb, *CASES[verb](at, target)]
        if name == "same" and verb in ("weights", "package", "export"):  # the output is a file
            words = [f"{at}/cris.pt" if word.startswith(f"{target}/") else word for word in words]
        if name in ("signs", "full", "readonly") and verb in ("clinical", "report"):  # they write into what they read
            source = Path(at) / "evaluation"
            with contextlib.suppress(OSError):
                shutil.copytree(source, target)
        start = time.monotonic()
        code, line = ask(words, {"listen": 40, "demo": 40, "experiment": 10 * SECONDS}.get(verb, SECONDS))
        print(f"| {name} | {verb} | {code} | {line[:300]} | {time.monotonic() - start:.0f} s |", flush=True)


def make_inputs(work: Path) -> None:
    """Write tiny examples of everything that a verb reads."""
    import torch

    from synboost_monai.model_card import write_model
    from synboost_monai.networks import create_segmenter, create_semantic_diffusion_unet

    at = work / "inputs"
    at.mkdir(parents=True)
    torch.manual_seed(0)
    write_model(create_segmenter("cris", "small").state_dict(), at / "cris.pt")
    write_model(create_semantic_diffusion_unet("small").state_dict(), at / "diffusion.pt")
    (at / "images").mkdir()
    (at / "input.yaml").write_text(f"modality: ultrasound\ndatalist: {at}/real/datalist.json\ndataroot: {at}/real\n")
    for words in (
        ["phantom", f"{at}/phantom", "--num_patients", "6", "--image_height", "64", "--num_frames", "2"],
        ["prepare", f"{at}/phantom", f"{at}/real"],
        ["phantom-studies", f"{at}/studies", "--num_studies", "1", "--image_height", "64", "--num_frames", "8"],
        ["evaluate", *CASES["evaluate"](str(at), f"{at}/evaluation")],
        ["synthesise", *CASES["synthesise"](str(at), f"{at}/synthetic")],
    ):
        print(words[0], *ask(words), flush=True)
    image = next((at / "phantom").rglob("*_4CH_ED.nii.gz"))
    shutil.copy(image, at / "images" / "a.nii.gz")


if __name__ == "__main__":
    assert set(CASES) | {"version"} == set(VERBS)
    kind, place, *rest = sys.argv[1:]
    if kind == "inputs":
        make_inputs(Path(place))
    else:
        is_into = kind in ("readonly", "full")
        os.environ["SYNBOOST_BUNDLES"] = ""
        column(kind, Path(place), Path(rest[0]) if is_into else None, rest[1:] if is_into else rest)
