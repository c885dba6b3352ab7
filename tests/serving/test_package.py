"""Test a bundle with its weights as a zip: the same bytes each time, and it runs from its own folder, away from the source tree."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from synboost_monai.bundle_run import run_bundle
from synboost_monai.model_card import PUBLISHED_FACTS, read_card, write_model
from synboost_monai.serving.package import package_bundle, with_values
from tests.forked import Forked, module
from tests.tiny import SIZE, tiny_card, tiny_network, tiny_weights

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = ("echo_semantic_diffusion", "echo_clipseg", "echo_cris")
OVERRIDES = {"preset": "tiny", "image_size": SIZE}


@pytest.fixture(scope="module", params=BUNDLES)
def bundle(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def weights(bundle: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_weights(bundle, tmp_path_factory.mktemp("weights") / "best.pt")


@pytest.fixture(scope="module")
def unpacked(bundle: str, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the unpacked zip."""
    folder = tmp_path_factory.mktemp("package")
    path = package_bundle(bundle, folder / "a.zip", checkpoint_path=weights, overrides=OVERRIDES)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    return folder / bundle


def test_the_same_bundle_gives_the_same_bytes(bundle: str, weights: Path, tmp_path: Path) -> None:
    hashes = set()
    for name in ("a.zip", "b.zip"):
        path = package_bundle(bundle, tmp_path / name, checkpoint_path=weights, overrides=OVERRIDES)
        hashes.add(hashlib.sha256(path.read_bytes()).hexdigest())
        os.utime(weights)  # a file's time plays no part
    assert len(hashes) == 1
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        names = archive.namelist()
        assert names == sorted(names) and all(name.startswith(f"{bundle}/") for name in names)
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.testzip() is None


def test_it_holds_the_bundle_its_weights_and_what_differs(bundle: str, weights: Path, unpacked: Path) -> None:
    source = ROOT / "bundles" / bundle
    shipped = {p.relative_to(source) for p in source.rglob("*") if p.is_file() and p.parent.name != "models"}
    assert {p.relative_to(unpacked) for p in unpacked.rglob("*") if p.is_file()} == shipped | {Path("models/model.pt")}
    assert (unpacked / "models/model.pt").read_bytes() == weights.read_bytes()
    for name in ("inference", "train"):
        config, original = (
            yaml.safe_load((folder / f"configs/{name}.yaml").read_text(encoding="utf-8"))
            for folder in (unpacked, source)
        )
        assert config == {**original, **OVERRIDES}
        assert "# " in (unpacked / f"configs/{name}.yaml").read_text(encoding="utf-8")
    readme = (unpacked / "docs/README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in readme
    assert "`image_size: 32`" in readme and '`preset: "tiny"`' in readme


def test_its_metadata_is_that_of_the_network(bundle: str, unpacked: Path) -> None:
    """`verify_net_in_out` runs as the zoo calls it."""
    from monai.bundle import verify_net_in_out

    extra: dict[str, Any] = {}
    if bundle == "echo_semantic_diffusion":
        label = torch.zeros(1, 5, SIZE, SIZE)
        extra = {"extra_forward_args": {"timesteps": torch.zeros(1, dtype=torch.long), "label_onehot": label}}
    verify_net_in_out(
        "network_def",
        meta_file=str(unpacked / "configs/metadata.json"),
        config_file=str(unpacked / "configs/inference.yaml"),
        bundle_root=str(unpacked),
        **extra,
    )
    formats = json.loads((unpacked / "configs/metadata.json").read_text(encoding="utf-8"))["network_data_format"]
    assert formats["inputs"]["image"]["spatial_shape"] == formats["outputs"]["pred"]["spatial_shape"] == [SIZE, SIZE]


def test_it_runs_from_its_own_folder(bundle: str, unpacked: Path, datalist_dir: Path, tmp_path: Path) -> None:
    words = ["run", "--config_file", "configs/inference.yaml", "--bundle_root", "."]
    words += ["--dataset_dir", datalist_dir, "--output_dir", tmp_path / "out", "--device", "$torch.device('cpu')"]
    options = {"sections": "validation", "limit": 1, "num_variations": 1, "num_inference_steps": 2}
    options = options if bundle == "echo_semantic_diffusion" else {}
    words += [word for key, value in options.items() for word in (f"--{key}", value)]
    Forked(*module("monai.bundle", *words), folder=unpacked).done()
    here = {"dataset_dir": str(datalist_dir), "output_dir": str(tmp_path / "here"), "device": "cpu", **options}
    run_bundle(bundle, "inference", {**here, **OVERRIDES, "checkpoint_path": str(unpacked / "models/model.pt")})
    found, expected = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.nii.gz")}
        for folder in (tmp_path / "out", tmp_path / "here")
    )
    assert len(found) == (2 if options else 8) and found == expected  # image and label map, or label map and spread


def test_a_calibration_is_packed_with_its_weights_alone(tmp_path: Path) -> None:
    weights = tiny_weights("echo_cris", tmp_path / "model.pt")
    calibration = tmp_path / "found.json"
    overrides = {**OVERRIDES, "calibration_path": str(calibration)}
    options: dict[str, Any] = {"checkpoint_path": weights, "overrides": overrides}
    with pytest.raises(FileNotFoundError, match="found.json: no such calibration"):
        package_bundle("echo_cris", tmp_path / "a.zip", **options)
    calibration.write_text(json.dumps({"checkpoint_sha256": "0" * 64}))
    with pytest.raises(ValueError, match="was fitted for the weights with SHA-256 000000"):
        package_bundle("echo_cris", tmp_path / "a.zip", **options)
    assert not (tmp_path / "a.zip").exists()
    calibration.write_text(json.dumps({"checkpoint_sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}))
    with zipfile.ZipFile(package_bundle("echo_cris", tmp_path / "a.zip", **options)) as archive:
        assert archive.read("echo_cris/models/calibration.json") == calibration.read_bytes()
        config = yaml.safe_load(archive.read("echo_cris/configs/inference.yaml"))
    assert config["calibration_path"] == "$@bundle_root + '/models/calibration.json'"


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        ({"dataset_dir": "images"}, "--dataset_dir is a place on this machine"),
        ({"inferer::channels_last": True}, "--inferer::channels_last is nested"),
        ({"presett": "tiny"}, "unknown key --presett; did you mean preset"),
        ({"preset": "small", "image_size": 64}, "does not fit CLIPSeg"),
        ({**OVERRIDES, "device": "cpu", "network_def": "@x"}, "--network_def is a component"),
    ],
)
def test_what_cannot_be_packed_is_said(overrides: dict[str, Any], match: str, tmp_path: Path) -> None:
    weights = tiny_weights("echo_clipseg", tmp_path / "model.pt")
    with pytest.raises(ValueError, match=re.escape(match)):
        package_bundle("echo_clipseg", tmp_path / "a.zip", checkpoint_path=weights, overrides=overrides)
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_weights_are_needed_and_must_be_plain(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="models/model.pt: no such weights; give --checkpoint_path"):
        package_bundle("echo_semantic_diffusion", tmp_path / "a.zip")
    torch.save({"state_dict": torch.load(tiny_weights("echo_cris", tmp_path / "m.pt"))}, tmp_path / "nested.pt")
    with pytest.raises(ValueError, match="nested.pt is no plain model.pt; make one .* `synboost weights convert"):
        package_bundle("echo_cris", tmp_path / "a.zip", checkpoint_path=tmp_path / "nested.pt", overrides=OVERRIDES)
    assert not (tmp_path / "a.zip").exists()


def test_values_are_written_beside_their_comments() -> None:
    text = "# head\nsize: 352    # pixels: 'a # b'\nmean: [0.1, 0.2]\nrange:\n  low: 1\nname: ''   # words\n"
    changed = with_values(text, {"size": 160, "mean": [0.5], "name": "left: atrium"}, "x.yaml")
    assert changed == (
        "# head\nsize: 160    # pixels: 'a # b'\nmean: [0.5]\nrange:\n  low: 1\nname: \"left: atrium\"   # words\n"
    )
    with pytest.raises(ValueError, match="x.yaml: --range cannot be written into a package"):
        with_values(text, {"range": 3}, "x.yaml")


def test_what_the_weights_are_goes_along(tmp_path: Path) -> None:
    """The facts are in the configs too: MONAI Deploy and others read these without the path of the weights."""
    weights = tmp_path / "any.pt"
    card = write_model(tiny_network("clipseg").state_dict(), weights, tiny_card("clipseg", licence="MIT"))
    assert card is not None
    path = package_bundle("echo_clipseg", tmp_path / "a.zip", checkpoint_path=weights)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / "echo_clipseg"
    assert read_card(folder / "models/model.pt") == card
    for name in ("inference", "train"):
        config = yaml.safe_load((folder / f"configs/{name}.yaml").read_text(encoding="utf-8"))
        assert {key: config[key] for key in card.facts} == {**PUBLISHED_FACTS["clipseg"], **OVERRIDES}
    with pytest.raises(ValueError, match=f"made with image_size {SIZE}, but --image_size says 64"):
        package_bundle("echo_clipseg", tmp_path / "b.zip", checkpoint_path=weights, overrides={"image_size": 64})


def test_a_package_of_an_older_version_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from synboost_monai.__main__ import main

    shutil.copytree(ROOT / "bundles/echo_cris/configs", tmp_path / "old/configs")
    path = tmp_path / "old/configs/metadata.json"
    metadata = json.loads(path.read_text())
    metadata["required_packages_version"]["synboost-monai"] = "0.1.0"
    path.write_text(json.dumps(metadata))
    with pytest.raises(SystemExit) as stop:
        main(["segment", str(tmp_path / "old"), "--dataset_dir", "images"])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    assert "old: was made by synboost-monai 0.1.0, some of whose modules" in said and "with `synboost package`" in said
