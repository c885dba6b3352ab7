"""Test that no run of a bundle replaces its inputs: it is refused before the network runs, and nothing is written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synboost_monai.bundle_run import config_files
from synboost_monai.data import list_images
from synboost_monai.errors import user_error
from tests.bundles.conftest import workflow
from tests.tiny import tiny_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_weights("cris", tmp_path_factory.mktemp("weights") / "model.pt")


@pytest.fixture
def data(datalist_dir: Path, tmp_path: Path) -> Path:
    """Make a data set of two images in the testing section, with its files beside the datalist."""
    content = json.loads((datalist_dir / "datalist.json").read_text())
    items = [{k: v for k, v in item.items() if k in ("image", "label", "view")} for item in content["testing"][:2]]
    folder = tmp_path / "data"
    folder.mkdir()
    for item in items:
        for key in ("image", "label"):
            item[key] = shutil.copy(datalist_dir / item[key], folder).removeprefix(f"{folder}/")
    (folder / "datalist.json").write_text(json.dumps({"testing": items}))
    return folder


def run(config: str, **overrides: Any) -> None:
    """Run a config of CRIS's bundle on what it is merged onto."""
    configs = [path.stem for path in config_files("echo_cris", config)]
    workflow("echo_cris", configs, **{"prompt_ensemble": None, **overrides}).run()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(folder: Path, config: str, **overrides: Any) -> str:
    """Return the message of a run that is refused and leaves a folder as it is."""
    before = contents(folder)
    with pytest.raises(Exception) as caught:
        run(config, **overrides)
    assert contents(folder) == before
    error = user_error(caught.value)
    assert isinstance(error, ValueError)
    return str(error)


def plain_folder(data: Path) -> tuple[Path, Path]:
    (data / "datalist.json").unlink()
    return data, data


def through_a_link(data: Path) -> tuple[Path, Path]:
    (data.parent / "link").symlink_to("data")
    return data, data.parent / "link"


def by_a_datalist_elsewhere(data: Path) -> tuple[Path, Path]:
    items = json.loads((data / "datalist.json").read_text())["testing"]
    moved = [{key: f"../data/{item[key]}" for key in ("image", "label")} for item in items]
    (data.parent / "lists").mkdir()
    (data.parent / "lists" / "mine.json").write_text(json.dumps({"testing": moved}))
    return data.parent / "lists" / "mine.json", data


def hard_links(data: Path) -> tuple[Path, Path]:
    (data.parent / "out").mkdir()
    for path in data.glob("*.nii.gz"):
        os.link(path, data.parent / "out" / path.name)
    return data, data.parent / "out"


@pytest.mark.parametrize("way", [plain_folder, through_a_link, by_a_datalist_elsewhere, hard_links])
def test_segment_keeps_its_images(data: Path, weights: Path, way: Callable[[Path], tuple[Path, Path]]) -> None:
    dataset_dir, output_dir = way(data)
    message = refused(data.parent, "inference", dataset_dir=dataset_dir, output_dir=output_dir, checkpoint_path=weights)
    assert "_4CH" in message or "_2CH" in message
    assert "would replace it" in message and "give another output_dir" in message


def test_evaluate_keeps_label_maps_and_its_datalist(data: Path, weights: Path) -> None:
    (data / "label_maps").mkdir()
    items = json.loads((data / "datalist.json").read_text())["testing"]
    for item in items:
        moved = f"label_maps/{item['image']}"  # where the predicted one would go
        shutil.move(data / item["label"], data / moved)
        item["label"] = moved
    (data / "summary.json").write_text(json.dumps({"testing": items}))
    known = {"dataset_dir": data / "summary.json", "checkpoint_path": weights}
    assert "label_maps" in refused(data, "evaluate", output_dir=data, **known)
    (data / "label_maps").rename(data / "experts")
    for item in items:
        item["label"] = item["label"].replace("label_maps", "experts")
    (data / "summary.json").write_text(json.dumps({"testing": items}))
    assert "summary.json" in refused(data, "evaluate", output_dir=data, **known)


@pytest.mark.parametrize(
    ("config", "name"),
    [("calibrate", "calibration.json"), ("sensitivity", "sensitivity.json"), ("sensitivity", "prompt_sensitivity.png")],
)
def test_weights_and_datalists_are_kept(data: Path, weights: Path, config: str, name: str) -> None:
    kept = {"dataset_dir": data, "checkpoint_path": weights}
    key = "checkpoint_path" if name.endswith("png") else "dataset_dir"
    shutil.copy(weights if key == "checkpoint_path" else data / "datalist.json", data / name)
    section = {"section": "testing", "output_dir": data}
    assert name in refused(data, config, **section, **{**kept, key: data / name})


def test_results_within_the_input_are_not_the_next_input(data: Path, weights: Path) -> None:
    (data / "datalist.json").unlink()
    for path in data.glob("*_gt.nii.gz"):
        path.unlink()
    images = {Path(item["image"]).name for item in list_images(data)}
    for name in ("masks", "masks", "others"):
        run("inference", dataset_dir=data, output_dir=data / name, checkpoint_path=weights, prompt_ensemble=["P0"])
        assert len(list((data / name).iterdir())) == 3 * len(images)
    assert {Path(item["image"]).name for item in list_images(data)} == images
    assert len(list_images(data)) == len(images)
    with pytest.raises(ValueError, match="results of `segment` do not count"):
        list_images(data / "masks")


def test_an_output_folder_with_images_of_the_input_is_refused(data: Path) -> None:
    (data / "datalist.json").unlink()
    (data / "more").mkdir()
    image = next(data.glob("*_ED.nii.gz"))
    shutil.move(image, data / "more" / image.name)
    with pytest.raises(ValueError, match=f"more: the output would lie among the input: it holds {image.name}"):
        list_images(data, exclude=data / "more")
    assert list_images(data, exclude=data / "more" / "masks") == list_images(data)
