"""Run the commands of README.md, documentation and the bundles' READMEs, page by page, as printed there except for their sizes.

Left out are those whose block says what it needs that a test has not, and those of `ELSEWHERE`, which other tests run.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from synboost_monai.__main__ import main
from tests.test_readme import MARKER, PAGES, ROOT, block_commands, blocks, comments

ELSEWHERE = {
    r"bash scripts/quickstart\.sh": "tests/study/test_run.py",
    r"synboost experiment grid_small$": "tests/study/test_run.py",
    r"snakemake ": "tests/study/test_run.py",
    r"synboost run echo_cris train_simulated ": "tests/bundles/test_segmenter_training.py",
    # with the weights that ship, whose size cannot be made smaller
    r"synboost segment echo_cris --dataset_dir echo\.dcm ": "tests/test_shipped_weights.py",
    r"bash scripts/rebuild_weights\.sh": "tests/test_shipped_weights.py",
    r"synboost adapt ": "tests/adaptation/test_adapt.py",
    r"openssl req ": "tests/dicom/test_tls.py",
    # the reader's images are of the reader's patients
    r"synboost (pseudo-label echo_cris|run echo_cris train_small .*--pseudo_labelled_dir) ": "tests/bundles/test_segmenter_bundles.py",
    r"synboost report ": "tests/study/test_report.py",
    r"synboost auto3dseg ": "tests/auto3dseg/test_run.py",
    r"synboost listen ": "tests/hospital/test_listen.py",
    r"synboost demo ": "tests/serving/demo/test_page.py",
    r"bash scripts/test\.sh": "tests/test_scripts.py",
    r"bash scripts/check_gpu\.sh": "tests/test_check_gpu.py",
    r"bash scripts/setup_label\.sh": ".ci/run",
    r"\.venv_label/bin/synboost label ": "scripts/check_label.py",  # which .ci/run calls
    # a CLIPSeg so small finds too little to be calibrated
    r"synboost (run echo_clipseg calibrate|segment echo_clipseg .*--calibration_path)": "tests/bundles/test_segmenter_bundles.py",
    # of the segmenters' pages; docs/export.md has the same, which is run
    r"synboost export echo_\w+ --checkpoint_path RUN/": "tests/serving/test_export.py",
    # with these arguments from Python, where what is written is compared with the network
    r"python -m monai\.bundle (ckpt|onnx)_export": "tests/serving/test_export.py",
    r"python -m monai\.bundle verify_net_in_out": "tests/bundles/test_diffusion_bundle.py",
    r"python scripts/(\w+)\.py": r"tests/test_\1.py",
}
"""Start of a command -> what runs it."""
IN_A_SHELL = r"(cd|cp|source|pip install|unzip|curl|pre-commit) ?"
"""What is not ours; test_readme.py checks what it names."""

SMALLER = {
    r"preset small": "preset tiny",
    r"image_size \d+": "image_size 32",
    r"--num_patients \d+": "--num_patients 4 --image_height 64 --num_frames 2",
    r"--num_images \d+": "--num_images 3",
    r"--num_studies \d+": "--num_studies 1 --image_height 64 --num_frames 24",
    r"--num_maps \d+": "--num_maps 2",
    r"--patients \d+": "--patients 2",
    r"--num_folds \d+": "--num_folds 2",
    r"--max_epochs \d+": "--max_epochs 1",
    r"--num_inference_steps \d+": "--num_inference_steps 2",
    r"\bN\b": "32",
    r"\[2,3,\d+,\d+\]": "[2,3,32,32]",
}
"""What a page says -> what runs here."""
NETWORK = "--preset tiny --image_size 32"
LEARNING = (
    f"{NETWORK} --max_epochs 40 --batch_size 8 --learning_rate 0.01 --encoder_learning_rate_scale 1.0 --layer_decay 1.0 --weight_decay 0.0 "
    "--warm_up_steps 5 --ema_decay 0.0 --augment false --val_interval 20"
)
"""Of a segmenter that finds something after some eighty steps: a calibration refuses one that finds nothing."""
JUDGE = "--segmenter_preset tiny --segmenter_image_size 32 --num_bootstrap 20"
LEARNED = "--image_encoder_weights $None --init_checkpoint model.pt"
BRIEF = f"{NETWORK} --max_epochs 1 --batch_size 8 --val_interval 1"
SMALLER_BY_ADDING = {
    r"synboost synthesise": "--num_variations 1 --num_inference_steps 2 --limit 2",
    r"synboost run echo_semantic_diffusion train_(small|distilled)": BRIEF,
    r"synboost run echo_\w+ train_small": f"{BRIEF} --image_encoder_weights None",
    r"synboost evaluate echo_semantic_diffusion": "--num_bootstrap 20",
    r"synboost (dicom|run|segment|package|export)": NETWORK,
    # MONAI passes over None, and runs what begins with $
    r"python -m monai\.bundle run --config_file .*train_small": f"{BRIEF} {LEARNED}",
    r"python -m monai\.bundle run --config_file configs/train\.yaml": BRIEF,
    r"python -m monai\.bundle run --config_file configs/evaluate\.yaml": JUDGE,
    r"python -m monai\.bundle run .*SYNTHETIC": f"{NETWORK} --num_variations 1 --num_inference_steps 2 --limit 2",
    r"python -m monai\.bundle": NETWORK,
}
"""Start of a command -> options that it gets here, but for those that it has."""

WRITTEN = {
    "README.md": ("runs/atria/*_E[DS].nii.gz", "bundles/echo_cris/OUT/*.json"),
    "docs/getting_started.md": ("runs/steps/synthetic/contact_sheet.png", "runs/steps/scores/metrics.csv"),
    "docs/hospital.md": ("runs/hospital/out/ledger.csv", "OUT/report.html"),
    "docs/export.md": ("echo_cris.onnx", "echo_cris.ts"),
    "docs/deploy.md": ("echo_cris.zip",),
    "docs/howto/evaluate.md": ("runs/a/calibration.json", "runs/words/sensitivity.csv", "runs/comparison/*.csv"),
    "docs/howto/fine_tune.md": ("runs/quality/quality.html", "runs/joint/model.pt", "runs/adapters/model.pt"),
    "docs/howto/your_data.md": ("MASKS/*.json", "SYNTHETIC/provenance.json", "FOLD_0/datalist.json"),
    "docs/howto/prompts.md": ("runs/muscle/*.json", "runs/words_taught/model.pt"),
    "docs/howto/weights.md": ("runs/sdm/all/datalist.json",),
    "bundles/echo_cris/docs/README.md": ("bundles/echo_cris/OUT/*.json", "bundles/echo_cris/echo_cris.zip"),
    "bundles/echo_semantic_diffusion/docs/README.md": ("bundles/echo_semantic_diffusion/QUALITY/quality.html",),
}
"""Page -> some of what its commands leave."""


def commands_of(page: Path) -> list[str]:
    """Return the commands of a page that no comment marks and nothing else runs."""
    found = [
        " ".join(command.split())
        for block in blocks(page.read_text(encoding="utf-8"))
        if not MARKER.search(comments(block))
        for command in block_commands(block)
    ]
    return [c for c in found if not re.match(IN_A_SHELL, c) or c.startswith("cd bundles/")]


def runs_elsewhere(command: str) -> bool:
    return any(re.match(pattern, command) for pattern in ELSEWHERE)


def made_smaller(command: str) -> list[str]:
    """Return the words of a command with the sizes of a test, in the folder where it is to run."""
    for pattern, replacement in SMALLER.items():
        command = re.sub(pattern, replacement, command)
    words = shlex.split(command, comments=True)
    for pattern, options in SMALLER_BY_ADDING.items():
        if re.match(pattern, command):
            if Path.cwd().name == "echo_semantic_diffusion":
                options = options.removesuffix(LEARNED)
            added = shlex.split(options)
            for flag, value in zip(added[::2], added[1::2]):
                words += [] if flag in words else [flag, value]
            break
    return words


def smaller_of_cris(page: Path) -> list[list[str]]:
    """Return the commands of a page as they run here, with the name of CRIS for CLIPSeg's."""
    return [made_smaller(c.replace("clipseg", "cris")) for c in commands_of(page) if not runs_elsewhere(c)]


OF_CRIS = smaller_of_cris(ROOT / "bundles/echo_cris/docs/README.md")
RUN_PAGES = [p for p in PAGES if any(c not in OF_CRIS or p.parts[-3] == "echo_cris" for c in smaller_of_cris(p))]
"""Pages with commands that are not those of CRIS's own: both segmenters' configs come from one template."""


@pytest.fixture(scope="session")
def readers_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with what the pages take for granted: DATA, IMAGES, LABEL_MAPS, STUDIES, and weights of tiny networks."""
    import torch

    from synboost_monai.data import read_datalist
    from synboost_monai.data.prepare import prepare_dataset
    from synboost_monai.hospital.phantom_studies import write_phantom_studies
    from synboost_monai.model_card import PUBLISHED_FACTS, new_card, write_model
    from synboost_monai.networks import create_segmenter, create_semantic_diffusion_unet
    from synboost_monai.simulation import write_phantom

    place = tmp_path_factory.mktemp("reader")
    write_phantom(place / "PHANTOM", num_patients=8, image_height=64, num_frames=2, progress=False)
    for name, patients in (
        ("training", range(1, 5)),
        ("validation", range(5, 8)),
        ("testing", [8]),
    ):  # 3 to calibrate with
        split = place / "PHANTOM/database_split" / f"subgroup_{name}.txt"
        split.write_text("".join(f"patient{number:04d}\n" for number in patients))
    for folder in ("DATA", "runs/quickstart/real", "runs/steps/real"):
        prepare_dataset(place / "PHANTOM", place / folder, progress=False)
    for folder in ("IMAGES", "LABEL_MAPS"):
        (place / folder).mkdir()
    for item in read_datalist(place / "DATA", "testing", limit=2):
        shutil.copy(item["image"], place / "IMAGES")
        shutil.copy(item["label"], place / "LABEL_MAPS")
    write_phantom_studies(place / "STUDIES", num_studies=1, seed=1, image_height=64, num_frames=24)

    def save(network: torch.nn.Module, architecture: str, *names: str) -> None:
        facts = {"architecture": architecture, **PUBLISHED_FACTS[architecture], "preset": "tiny", "image_size": 32}
        for name in names:
            write_model(network.state_dict(), place / name, new_card(facts, {}))

    def copy(source: Path, target: Path, name: str = "model") -> None:
        """Copy weights and their card."""
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / "model.pt", target / (f"{name}.pt" if name == "model" else name))
        shutil.copy(source / "model.json", target / f"{name}.json")

    torch.manual_seed(0)
    learn = f"synboost train echo_cris --dataset_dir {place}/DATA --output_dir {place}/echo_cris {LEARNING}"
    run(shlex.split(f"{learn} --image_encoder_weights None"))
    quickstart = "runs/quickstart/segmenters/cris/synthetic_then_real/P2/seed0"
    for folder in (".", quickstart, "runs/a", "runs/cris"):
        copy(place / "echo_cris", place / folder)
    save(create_segmenter("cris", "tiny"), "cris", "runs/b/model.pt")
    diffusion = create_semantic_diffusion_unet("tiny", image_size=32)
    save(diffusion, "semantic_diffusion", "diffusion.pt", "runs/steps/diffusion/model.pt")
    for name in ("echo_cris", "echo_semantic_diffusion"):
        bundle = place / "bundles" / name
        shutil.copytree(ROOT / "bundles" / name, bundle, ignore=shutil.ignore_patterns("models"))
        shutil.copytree(place / "IMAGES", bundle / "IMAGES")
        prepare_dataset(place / "PHANTOM", bundle / "DATA", progress=False)
        copy(place / "echo_cris", bundle, "MODEL")
    copy(place / "echo_cris", place / "bundles/echo_cris/models")
    copy(place / "echo_cris", place / "bundles/echo_cris")
    return place


WEIGHTS_B = f"--checkpoint_path runs/b/model.pt {NETWORK}"
VIEWS = {"2ch": "apical_two_chamber", "4ch": "apical_four_chamber"}
PHASES = {"ed": "end_diastole", "es": "end_systole"}


def prepare_page(page: Path) -> None:
    """Provide results of commands that a page takes as done, though its own lines for them need what a test lacks."""
    if page.name == "evaluate.md":
        run(made_smaller("synboost evaluate echo_cris --dataset_dir DATA --output_dir runs/b/evaluation " + WEIGHTS_B))
    if page.name == "weights.md":
        for view in ("2ch", "4ch"):
            for phase in ("ed", "es"):
                folder, weights = f"runs/sdm/{view}_{phase}", f"--checkpoint_path diffusion.pt {NETWORK}"
                selection = f"--view {VIEWS[view]} --phase {PHASES[phase]}"
                run(made_smaller(f"synboost synthesise --dataset_dir DATA --output_dir {folder} {selection} {weights}"))


def run(words: list[str]) -> None:
    """Run a command as its program would, in this process where that is ours or MONAI's."""
    if words[0] == "synboost":
        main(words[1:])
    elif words[:3] == ["python", "-m", "monai.bundle"]:
        import fire
        import monai.bundle

        fire.Fire(monai.bundle, command=words[3:])
    else:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, *words[1:]], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Restore the logging, since MONAI's commands set up the log of their process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN_PAGES, ids=[str(page.relative_to(ROOT)) for page in RUN_PAGES])
def test_commands_of_a_page_run(
    page: Path, readers_place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    shutil.copytree(readers_place, place)
    monkeypatch.chdir(place if page.parts[-4] != "bundles" else place / "bundles" / page.parts[-3])
    prepare_page(page)
    for command in commands_of(page):
        if command.startswith("cd "):
            monkeypatch.chdir(place / command.split()[1])
        elif not runs_elsewhere(command):
            run(made_smaller(command))
    for pattern in WRITTEN.get(str(page.relative_to(ROOT)), ()):
        assert list(place.glob(pattern)), pattern


def test_every_command_is_run_or_marked() -> None:
    """A command that is not run here or by a test in `ELSEWHERE`, or only by a missing test, is an error."""
    for page in PAGES:
        for command in commands_of(page):
            runners = [re.sub(start + ".*", by, command) for start, by in ELSEWHERE.items() if re.match(start, command)]
            is_run_here = command.startswith(("synboost ", "python -m monai.bundle ", "python -c ", "cd bundles/"))
            assert runners or is_run_here, f"{page.name}: nothing runs `{command}`"
            assert [name for name in runners if not (ROOT / name).is_file()] == [], f"{page.name}: `{command}`"
