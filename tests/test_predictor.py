"""Test that the segmenter for Python gives what `synboost segment` writes, for files, arrays and clips."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

import synboost_monai
from synboost_monai.bundle_run import run_bundle
from synboost_monai.model_card import write_model
from synboost_monai.predictor import Segmenter, load_segmenter
from synboost_monai.transforms import load_echo
from tests.tiny import tiny_card, tiny_network, tiny_weights

SETTINGS: dict[str, Any] = {"device": "cpu", "threshold": 0.45}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write random weights of a tiny network, in half precision, with a card."""
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    state = tiny_network("cris").state_dict()
    half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    write_model(half, path, tiny_card("cris"))
    return path


@pytest.fixture(scope="module")
def segmenter(weights: Path) -> Segmenter:
    return synboost_monai.load_segmenter("echo_cris", weights, **SETTINGS)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write an image of each kind, and a clip."""
    from synboost_monai.dicom.writing.image import write_dicom_pair
    from synboost_monai.records import EchoRecord

    folder = tmp_path_factory.mktemp("files")
    frames = np.random.default_rng(0).rayleigh(40, (3, 50, 36)).clip(0, 255).astype(np.uint8)
    nib.save(nib.Nifti1Image(frames[0].T[..., None], np.diag([-0.2, -0.4, 1, 1])), folder / "a_4CH_ED.nii.gz")
    nib.save(nib.Nifti1Image(frames.T, np.diag([-0.2, -0.4, 1, 1])), folder / "clip.nii.gz")
    Image.fromarray(frames[0]).save(folder / "a.png")
    Image.fromarray(frames[0]).save(folder / "a.jpg", quality=90)
    record = EchoRecord(folder / "a.dcm", folder / "a_gt.dcm", "p", "apical_four_chamber", sex="female", age=64)
    write_dicom_pair(record, frames[0], frames[0] * 0, (0.4, 0.2), name="a")
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("a_4CH_ED.nii.gz", ""),
        ("a.png", "LA"),
        ("a.jpg", ""),
        ("a.dcm", ""),
        ("clip.nii.gz", "left atrium"),
    ],
)
def test_a_file_is_segmented_as_by_segment(
    segmenter: Segmenter, weights: Path, files: dict[str, Path], tmp_path: Path, name: str, prompt: str
) -> None:
    found = segmenter(files[name], prompt)
    values = {"checkpoint_path": str(weights), "dataset_dir": str(files[name]), "output_dir": str(tmp_path), **SETTINGS}
    run_bundle("echo_cris", "inference", {**values, "prompt": prompt, "sequences": name.startswith("clip")})
    (record_path,) = tmp_path.glob("*.json")
    record = json.loads(record_path.read_text())
    written = load_echo(tmp_path / record["label_map"], sequences=True)[0].numpy()
    shown = written if len(written) > 1 else written[0]
    assert np.array_equal(found.label_map, shown) and found.label_map.dtype == np.uint8 and shown.any()
    assert found.mask.dtype == bool and np.array_equal(found.mask, shown > 0)
    assert found.spacing_mm == (None if name.endswith(("png", "jpg")) else pytest.approx((0.4, 0.2)))
    assert {"verdict", "reasons", "predicted_dice", "structures", "model_sha256"} <= found.doubt.keys() <= record.keys()
    assert json.loads(json.dumps(found.doubt)) == {key: record[key] for key in found.doubt}
    assert found.doubt.verdict == record["verdict"]
    assert found.doubt.reasons == [reason["message"] for reason in record["reasons"]]
    assert found.spread is not None and len(found.prompts) == (2 if prompt else 6)  # in both phrasings
    assert (found.understood is None) == (prompt == "") and (not prompt or found.understood.prompt == prompt)


def test_an_array_is_segmented_as_its_file(segmenter: Segmenter, files: dict[str, Path]) -> None:
    pixels, clip = (load_echo(files[name], sequences=True)[0].numpy() for name in ("a_4CH_ED.nii.gz", "clip.nii.gz"))
    known = {"view": "apical_four_chamber", "phase": "end_diastole"}
    of_file, of_array = segmenter(files["a_4CH_ED.nii.gz"]), segmenter(pixels[0], spacing_mm=(0.4, 0.2), **known)
    assert np.array_equal(of_file.label_map, of_array.label_map) and of_file.prompts == of_array.prompts
    assert of_file.doubt.reasons == of_array.doubt.reasons and of_array.spacing_mm == (0.4, 0.2)
    whole = segmenter(clip, "left atrium", spacing_mm=(0.4, 0.2))
    assert whole.label_map.shape == clip.shape and len(whole.doubt["frames"]) == 3
    assert np.array_equal(whole.label_map, segmenter(files["clip.nii.gz"], "left atrium").label_map)
    assert segmenter(pixels[0]).spacing_mm is None
    assert segmenter(pixels[0].astype(np.float64) * 3 - 9).label_map.shape == pixels[0].shape


@pytest.mark.parametrize("name", ["a.dcm", "clip.nii.gz"])
def test_a_structure_is_that_of_the_whole_label_map_with_its_verdict(
    segmenter: Segmenter, files: dict[str, Path], name: str
) -> None:
    whole = segmenter(files[name])
    for prompt, index in (("LV", 1), ("heart muscle", 2), ("LA", 3)):
        found = segmenter(files[name], prompt)
        assert np.array_equal(found.mask, whole.label_map == index)
        assert np.array_equal(found.label_map, found.mask * index)
        for key in ("verdict", "reasons", "structures", "predicted_dice"):
            assert found.doubt[key] == whole.doubt[key], key


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (np.zeros((40, 40, 3)), {}, "a colour image is to be made grey"),
        (np.zeros(40), {}, r"expected grey levels \(H, W\)"),
        (np.full((40, 40), np.nan), {}, "NaN or infinite"),
        (np.zeros((8, 40)), {}, "at least 16 x 16 pixels"),
        (np.full((40, 40), "a"), {}, "expected grey levels"),
        (np.zeros((40, 40)), {"spacing_mm": (0.0, 1.0)}, "two lengths above 0"),
        (np.zeros((40, 40)), {"eye_colour": "blue"}, "no attribute is called eye_colour; there are view"),
        (np.zeros((40, 40)), {"prompt": "$__import__('os')"}, "plain words"),
        (np.zeros((40, 40)), {"prompt": "the right ventricle"}, "the right ventricle is not among the structures"),
        ("a.png", {"spacing_mm": (1, 1)}, "tells its own spacing"),
    ],
)
def test_mistakes_are_sentences(
    segmenter: Segmenter, files: dict[str, Path], image: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        segmenter(files[image] if isinstance(image, str) else image, **options)


@pytest.mark.parametrize("architecture", ["cris", "clipseg"])
def test_a_network_that_knows_the_view_says_it(architecture: str, files: dict[str, Path], tmp_path: Path) -> None:
    """The masks are those of the network without its head; any other picture than an apical view goes to review, whatever is asked for."""
    seeing = tiny_network(architecture, has_view_head=True)
    plain = {key: value for key, value in seeing.state_dict().items() if not key.startswith("view_head.")}
    write_model(plain, tmp_path / "plain.pt", tiny_card(architecture))
    bundle, images = f"echo_{architecture}", {name: files[name] for name in ("a.png", "clip.nii.gz")}
    expected = {name: load_segmenter(bundle, tmp_path / "plain.pt", **SETTINGS)(path) for name, path in images.items()}
    for is_apical, bias in ((True, [-9.0, 9.0, 0.0, 0.0]), (False, [9.0, 0.0, 0.0, 0.0])):
        with torch.no_grad():
            seeing.view_head.last.bias.copy_(torch.tensor(bias))
        path = tmp_path / f"{is_apical}.pt"
        write_model(seeing.state_dict(), path, tiny_card(architecture, has_view_head=True))
        segmenter = load_segmenter(bundle, path, **SETTINGS)
        for name, image in images.items():
            found, asked = segmenter(image), segmenter(image, "left ventricle")
            assert np.array_equal(found.label_map, expected[name].label_map)
            for doubt in (found.doubt, asked.doubt):
                assert doubt["view"]["name"] == ("apical_two_chamber" if is_apical else "no_apical_view")
                assert ("not_apical" in {reason["code"] for reason in doubt["reasons"]}) is not is_apical
    assert len(found.doubt["frames"]) == 3 and "systole" in found.doubt["frames"][0]["view"]
    # a hospital's clips, frame by frame
    from synboost_monai.hospital.model import EchoSegmenter

    model = EchoSegmenter(bundle, str(path), SETTINGS)
    frames = nib.load(files["clip.nii.gz"]).get_fdata().T.astype(np.uint8)
    hospital = model.segment(frames, None, {}, judge=True)
    assert hospital.views is not None and len(hospital.views) == len(hospital.doubts or []) == 3
    assert {doubt["view"]["name"] for doubt in hospital.doubts or []} == {"no_apical_view"}
    first = model.segment(frames, None, {}, is_first=True, is_small=True).views or []
    assert [view["probabilities"] for view in first] == [
        pytest.approx(view["probabilities"]) for view in hospital.views
    ]


def test_the_judge_and_a_trained_fold_pass_over_the_view(files: dict[str, Path], tmp_path: Path) -> None:
    """Label maps and probabilities of a network that knows views are those of the same network without its head."""
    import yaml

    from synboost_monai.auto3dseg.infer import InferClass
    from synboost_monai.evaluation.quality_images import Echo, JudgingSegmenter

    seeing = tiny_network("cris", has_view_head=True).state_dict()
    plain = {key: value for key, value in seeing.items() if not key.startswith("view_head.")}
    pixels = load_echo(files["a.png"])[0].numpy()[0].astype(np.uint8)
    echo = Echo({"case": "a"}, pixels, np.zeros_like(pixels), np.ones_like(pixels, bool), True, (1.0, 1.0))
    label_maps, probabilities = [], []
    for name, state in (("plain", plain), ("seeing", seeing)):
        fold = tmp_path / name
        for folder, content in (("configs/hyper_parameters", {"bundle": "echo_cris"}), ("model/inference", {})):
            (fold / folder).parent.mkdir(parents=True)
            content |= (
                {"data_list_file_path": str(fold / "list.json"), "data_file_base_dir": str(fold)} if content else {}
            )
            (fold / f"{folder}.yaml").write_text(yaml.safe_dump(content))
        (fold / "list.json").write_text('{"training": []}')
        write_model(state, fold / "model/model.pt", tiny_card("cris", has_view_head=name == "seeing"))
        label_maps.append(JudgingSegmenter("echo_cris", fold / "model/model.pt", device="cpu")([echo])[0][0])
        inferer = InferClass(str(fold / "configs/hyper_parameters.yaml"), device="cpu")
        probabilities.append(inferer.infer(str(files["a.png"])).numpy())
    assert np.array_equal(*label_maps) and label_maps[0].any()
    assert np.array_equal(*probabilities) and probabilities[0].shape == (4, 36, 50)


def test_no_file_and_no_weights(segmenter: Segmenter, weights: Path, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.dcm"):
        with pytest.raises(FileNotFoundError, match="expected the file of an image"):
            segmenter(path)
    advice = "no such weights; give --checkpoint_path.*synboost run echo_cris train_small.*synboost weights list"
    with pytest.raises(FileNotFoundError, match=advice):
        load_segmenter(checkpoint_path=tmp_path / "none.pt")
    with pytest.raises(ValueError, match="clipseg.pt does not fit CRIS|clipseg.pt: |these are the weights of CLIPSeg"):
        load_segmenter(checkpoint_path=tiny_weights("clipseg", tmp_path / "clipseg.pt"), preset="tiny", image_size=32)
    with pytest.raises(ValueError, match="unknown key --presett; did you mean preset"):
        load_segmenter(checkpoint_path=weights, presett="tiny")
    with pytest.raises(ValueError, match="made with image_size 32, but --image_size says 64"):
        load_segmenter(checkpoint_path=weights, image_size=64)
    with pytest.raises(ValueError, match="weights of cris, not of clipseg; take the bundle echo_cris"):
        load_segmenter("echo_clipseg", weights)


def test_the_bundles_own_weights_are_taken_and_said(
    weights: Path,
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """They are as they will ship: models/model.pt with model.json in the bundle, and no command names them."""
    from synboost_monai.__main__ import main
    from synboost_monai.bundle_run import bundle_dir

    bundle = shutil.copytree(
        bundle_dir("echo_cris"), tmp_path / "bundles/echo_cris", ignore=lambda d, n: {"models"} & set(n)
    )
    for name in ("model.pt", "model.json"):
        (bundle / "models").mkdir(exist_ok=True)
        shutil.copy(weights.with_name(name), bundle / "models")
    monkeypatch.setenv("SYNBOOST_BUNDLES", str(tmp_path / "bundles"))
    assert load_segmenter()(files["a.png"]).label_map.shape == (50, 36)
    main(["segment", "echo_cris", "--dataset_dir", str(files["a.png"]), "--output_dir", str(tmp_path / "out")])
    first = capfd.readouterr().out.splitlines()[0]
    assert first.startswith(
        f"weights: {bundle}/models/model.pt (cris, preset tiny, 32 px, licence not stated, SHA-256 "
    )
    assert (tmp_path / "out/a.png").is_file()
    for words in (["export", "echo_cris", "--format", "torchscript"], ["package", "echo_cris"]):
        end = ".ts" if words[0] == "export" else ".zip"
        main([*words, "--output", str(tmp_path / f"made{end}")])
        assert capfd.readouterr().out.splitlines()[0] == first and (tmp_path / f"made{end}").is_file()


def test_hospital_and_demo_read_what_the_weights_are(weights: Path) -> None:
    from synboost_monai.evaluation.quality_images import JudgingSegmenter
    from synboost_monai.hospital.model import EchoSegmenter
    from synboost_monai.serving.demo.segmenting import Segmenter as OfThePage

    model = EchoSegmenter("echo_cris", str(weights), {"device": "cpu"})
    assert (model.settings["preset"], model.settings["image_size"], model.settings["padding_id"]) == ("tiny", 32, 0)
    assert next(model.network.parameters()).dtype == torch.float32  # of weights in half precision
    assert OfThePage("echo_cris", str(weights), {"device": "cpu"}).image_size == 32
    assert JudgingSegmenter("echo_cris", weights, device="cpu").facts["preset"] == "tiny"
    with pytest.raises(ValueError, match="made with preset tiny, but --preset says small"):
        EchoSegmenter("echo_cris", str(weights), {"preset": "small"})


def test_without_weights_the_first_line_says_what_to_do(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from synboost_monai.__main__ import main
    from synboost_monai.bundle_run import bundle_dir

    shutil.copytree(bundle_dir("echo_cris"), tmp_path / "bundles/echo_cris", ignore=lambda d, n: {"models"} & set(n))
    monkeypatch.setenv("SYNBOOST_BUNDLES", str(tmp_path / "bundles"))
    with pytest.raises(SystemExit):
        main(["segment", "echo_cris", "--dataset_dir", str(files["a.png"]), "--output_dir", str(tmp_path / "out")])
    said = capfd.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and not (tmp_path / "out").exists()
    assert "models/model.pt: no such weights; give --checkpoint_path" in said.err


def test_the_loader_comes_when_it_is_asked_for() -> None:
    """The reader of DICOM comes with the first DICOM file: the transforms do not bring it."""
    code = (
        "import sys, synboost_monai as s; a = 'torch' in sys.modules; s.load_segmenter; import synboost_monai.transforms; "
        "print(a, hasattr(s, 'nothing'), 'synboost_monai.dicom' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "False"]


def test_a_label_map_is_synthesised_as_by_the_bundles_run(tmp_path: Path) -> None:
    """`load_synthesiser` draws what `synboost synthesise` draws with the same label map, perturbation and noise."""
    tiny_weights("echo_semantic_diffusion", tmp_path / "model.pt")
    label_map = np.zeros((60, 48), np.uint8)
    label_map[20:40, 16:30] = 1
    label_path = tmp_path / "data/a_4CH_ED_gt.nii.gz"
    label_path.parent.mkdir()
    nib.save(nib.Nifti1Image(label_map.T[..., None], np.diag([-0.5, -0.4, 1, 1])), label_path)
    settings = {"preset": "tiny", "image_size": 32, "device": "cpu", "num_inference_steps": 2, "num_threads": 1}
    known = {"checkpoint_path": str(tmp_path / "model.pt"), "perturbation_strength": 0.0, "images_at_once": 1}
    paths = {"dataset_dir": str(label_path), "output_dir": str(tmp_path / "out")}
    run_bundle("echo_semantic_diffusion", "inference", {**settings, **known, **paths, "num_variations": 1})
    (record,) = json.loads((tmp_path / "out/provenance.json").read_text())["images"]
    synthesiser = synboost_monai.load_synthesiser(checkpoint_path=tmp_path / "model.pt", **settings)
    made = synthesiser(label_path, seed=record["noise_seed"])
    written, spacing_mm = load_echo(tmp_path / "out" / record["image"])
    assert np.array_equal(made.image, written.numpy()[0]) and made.image.any()
    assert set(np.unique(made.label_map)) == {0, 1} and made.spacing_mm == pytest.approx(spacing_mm)
    with pytest.raises(ValueError, match="image_size is 33 but this network needs multiples"):
        synboost_monai.load_synthesiser(checkpoint_path=tmp_path / "model.pt", **{**settings, "image_size": 33})
