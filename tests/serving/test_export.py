"""Test segmenters as ONNX and TorchScript: equal to the network for several batch sizes and prompt counts, ours and by MONAI's commands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from synboost_monai.serving import export
from tests.bundles.conftest import workflow
from tests.tiny import SIZE, tiny_network, tiny_weights

ROOT = Path(__file__).resolve().parents[2]
COUNTS = ((1, 1), (2, 3), (3, 2))
"""(images, prompts)."""


both = pytest.mark.parametrize("architecture", ["clipseg", "cris"], indirect=True)
"""For what depends on the network; the rest is tested with CRIS."""


@pytest.fixture(scope="module")
def architecture(request: pytest.FixtureRequest) -> str:
    return str(getattr(request, "param", "cris"))


@pytest.fixture(scope="module")
def weights(architecture: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_weights(architecture, tmp_path_factory.mktemp("weights") / "model.pt", seed=1)


@pytest.fixture(scope="module")
def network(architecture: str) -> torch.nn.Module:
    return tiny_network(architecture, seed=1).eval().requires_grad_(False)


def exported(architecture: str, weights: Path, path: Path, format: str) -> export.Difference:
    overrides = {"preset": "tiny", "image_size": SIZE}
    found, difference = export.export_bundle(
        f"echo_{architecture}", path, format=format, checkpoint_path=weights, overrides=overrides
    )
    assert found == path and path.is_file() and difference is not None
    return difference


@pytest.fixture(scope="module")
def onnx_path(architecture: str, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("onnx") / "segmenter.onnx"
    assert exported(architecture, weights, path, "onnx").relative < export.TOLERANCE
    return path


@both
def test_onnx_is_the_network(network: torch.nn.Module, onnx_path: Path) -> None:
    run = export.onnx_runner(onnx_path, 1)
    assert run is not None
    assert export.measure_difference(network, run, SIZE, COUNTS).relative < export.TOLERANCE


@both
def test_torchscript_is_the_network(architecture: str, network: torch.nn.Module, weights: Path, tmp_path: Path) -> None:
    assert exported(architecture, weights, tmp_path / "a.ts", "torchscript").relative < export.TOLERANCE
    run = export.torchscript_runner(tmp_path / "a.ts")
    assert export.measure_difference(network, run, SIZE, COUNTS).relative < export.TOLERANCE
    extra = {"synboost.json": ""}
    script = torch.jit.load(str(tmp_path / "a.ts"), _extra_files=extra)
    settings = json.loads(extra["synboost.json"])
    assert settings["image_size"] == SIZE and settings["classes"]["3"] == "left_atrium"
    image = torch.randn(2, 3, SIZE, SIZE)
    torch.testing.assert_close(script(image), network(image), rtol=1e-4, atol=1e-4)  # no prompts: the three structures
    with pytest.raises(torch.jit.Error, match="another size"):
        script(torch.randn(1, 3, 2 * SIZE, 2 * SIZE))


@both
def test_monai_exports_torchscript_with_prompts(
    architecture: str, network: torch.nn.Module, weights: Path, tmp_path: Path
) -> None:
    """`ckpt_export network_export` runs, and `ckpt_export network_def` by tracing, which has the default prompts."""
    from monai.bundle import ckpt_export

    configs = ROOT / f"bundles/echo_{architecture}/configs"
    common = {"ckpt_file": str(weights), "meta_file": str(configs / "metadata.json")}
    common |= {"preset": "tiny", "image_size": SIZE}
    files = [str(configs / "inference.yaml"), str(configs / "export.yaml")]
    ckpt_export("network_export", str(tmp_path / "prompts.ts"), config_file=files, **common)
    run = export.torchscript_runner(tmp_path / "prompts.ts")
    assert export.measure_difference(network, run, SIZE, COUNTS).relative < export.TOLERANCE

    shape = [2, 3, SIZE, SIZE]
    ckpt_export(
        "network_def", str(tmp_path / "plain.ts"), config_file=files[0], use_trace=True, input_shape=shape, **common
    )
    extra = {"metadata.json": "", "inference.json": ""}
    plain = torch.jit.load(str(tmp_path / "plain.ts"), _extra_files=extra)
    assert json.loads(extra["metadata.json"])["network_data_format"] and json.loads(extra["inference.json"])["inferer"]
    for number in (1, 3):
        image = torch.randn(number, 3, SIZE, SIZE)
        with torch.no_grad():
            torch.testing.assert_close(plain(image), network(image), rtol=1e-4, atol=1e-4)


@both
def test_monai_exports_onnx(architecture: str, network: torch.nn.Module, weights: Path, tmp_path: Path) -> None:
    """`onnx_export network_def` takes the image alone, for the three structures, in fixed shapes."""
    onnxruntime = pytest.importorskip("onnxruntime")
    from monai.bundle import onnx_export

    configs = ROOT / f"bundles/echo_{architecture}/configs"
    onnx_export(
        "network_def",
        str(tmp_path / "plain.onnx"),
        ckpt_file=str(weights),
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / "inference.yaml"),
        use_trace=True,
        input_shape=[2, 3, SIZE, SIZE],
        preset="tiny",
        image_size=SIZE,
    )
    session = onnxruntime.InferenceSession(str(tmp_path / "plain.onnx"), providers=["CPUExecutionProvider"])
    image = torch.randn(2, 3, SIZE, SIZE)
    found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: image.numpy()})[0])
    expected = network(image)
    assert found.shape == expected.shape == (2, 3, SIZE, SIZE)
    assert (found - expected).abs().max() < export.TOLERANCE * expected.abs().max()


def test_wide_projector_is_exported(tmp_path: Path) -> None:
    """The published CRIS's projector mixes channels before it doubles the map, unlike the narrow ones of small presets."""
    onnxruntime = pytest.importorskip("onnxruntime")
    from synboost_monai.networks.cris import _MIN_CHANNELS_TO_FACTOR, Projector

    torch.manual_seed(0)
    projector = Projector(8, _MIN_CHANNELS_TO_FACTOR, (_MIN_CHANNELS_TO_FACTOR, 4)).eval().requires_grad_(False)
    inputs = (torch.randn(3, _MIN_CHANNELS_TO_FACTOR, 5, 4), torch.randn(3, 8))
    torch.onnx.export(
        projector,
        (*inputs, None),
        str(tmp_path / "projector.onnx"),
        input_names=["map", "state"],
        dynamic_axes={"map": {0: "n"}, "state": {0: "n"}},
        opset_version=export.ONNX_OPSET,
        dynamo=False,
    )
    session = onnxruntime.InferenceSession(str(tmp_path / "projector.onnx"), providers=["CPUExecutionProvider"])
    for number in (3, 1):
        x, state = (t[:number] for t in inputs)
        found = session.run(None, {"map": x.numpy(), "state": state.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(found), projector(x, state, None), rtol=1e-5, atol=1e-5)


def test_onnx_segmenter_gives_the_bundle_s_label_maps(
    architecture: str, onnx_path: Path, weights: Path, datalist_dir: Path, tmp_path: Path
) -> None:
    from synboost_monai.data import read_datalist
    from synboost_monai.files import read_plane
    from synboost_monai.onnx_segmenter import OnnxSegmenter
    from synboost_monai.transforms import load_echo

    places = {"dataset_dir": datalist_dir, "output_dir": tmp_path, "checkpoint_path": weights}
    plain = {"prompt_ensemble": "$None", "prompt_level": "P1", "keep_largest": False, "fill_holes": False}
    workflow(f"echo_{architecture}", ["inference"], **places, **plain, threshold=0.3).run()
    segmenter = OnnxSegmenter(onnx_path, num_threads=1)
    agreements = []
    for item in read_datalist(datalist_dir, "testing"):
        plane = read_plane(item["image"])
        label_map = segmenter(plane.pixels, spacing_mm=plane.spacing_mm, threshold=0.3)
        expected = load_echo(next(tmp_path.glob(f"{Path(item['image']).name.split('.')[0]}.nii.gz")))[0][0].numpy()
        assert label_map.shape == expected.shape and label_map.dtype == np.uint8
        agreements.append((label_map == expected).mean())
    assert len(agreements) == 4 and min(agreements) > 0.99
    logits = segmenter.logits(plane.pixels)
    in_its_words = segmenter.logits(plane.pixels, ["heart muscle", "LA"])
    assert np.array_equal(in_its_words, logits[1:])
    as_it_is = segmenter.logits(plane.pixels, ["Myocardium in the cardiac ultrasound."])
    assert not np.allclose(as_it_is, logits[1:2])
    with pytest.raises(ValueError, match="the liver is not among the structures"):
        segmenter(plane.pixels, ["left atrium", "liver"])


EXAMPLE = """
import sys
sys.modules["torch"] = None  # as where it is not installed
{example}
assert not any(name.split(".")[0] in ("torch", "monai") for name, module in sys.modules.items() if module is not None)
"""


def test_example_of_the_documentation_runs_without_torch(onnx_path: Path, tmp_path: Path) -> None:
    from PIL import Image

    text = (ROOT / "docs/export.md").read_text(encoding="utf-8")
    example = text.split("```python\n")[1].split("```")[0]
    assert 5 <= len(example.strip().splitlines()) <= 10 and "torch" not in example
    grey = np.random.default_rng(0).rayleigh(40, (50, 36)).clip(0, 255).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "echo.png")
    (tmp_path / "echo_cris.onnx").write_bytes(onnx_path.read_bytes())
    code = EXAMPLE.format(example=example)
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert np.asarray(Image.open(tmp_path / "label_map.png")).shape == (50, 36)


def refused(call: Callable[[], object], kind: type[Exception], match: str, folder: Path) -> None:
    with pytest.raises(kind, match=match):
        call()
    assert not list(folder.iterdir())


def test_what_cannot_be_exported_is_said_and_nothing_is_written(
    weights: Path, architecture: str, tmp_path: Path
) -> None:
    def call(bundle: str = f"echo_{architecture}", **options: object) -> Callable[[], object]:
        defaults = {"checkpoint_path": weights, "overrides": {"preset": "tiny", "image_size": SIZE}}
        return lambda: export.export_bundle(bundle, tmp_path / "a", **{**defaults, **options})  # type: ignore[arg-type]

    refused(call(format="tflite"), ValueError, "--format must be onnx or torchscript, got 'tflite'", tmp_path)
    refused(call(checkpoint_path="none.pt"), FileNotFoundError, "none.pt: no such weights", tmp_path)
    refused(call(overrides={"preset": "small"}), ValueError, "does not fit", tmp_path)
    refused(call(overrides={"image_sise": 1}), ValueError, "did you mean image_size", tmp_path)
    refused(call("echo_semantic_diffusion", overrides={}), ValueError, "is no segmenter's bundle", tmp_path)


@pytest.mark.parametrize(("factor", "told"), [(1.001, "1.0e-03"), (float("nan"), "inf")])
def test_a_file_that_differs_is_not_written(
    weights: Path, architecture: str, factor: float, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = export.torchscript_runner
    monkeypatch.setattr(export, "torchscript_runner", lambda path: lambda i, d: true(path)(i, d) * factor)
    call = lambda: exported(architecture, weights, tmp_path / "a.ts", "torchscript")  # noqa: E731
    words = f"differs by {told} of the largest logit, expected 1e-04 at most; it was not written"
    refused(call, RuntimeError, words, tmp_path)


def test_the_command_tells_the_difference_and_nothing_else(
    architecture: str, weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    from synboost_monai.__main__ import main

    path = tmp_path / "a.onnx"
    size = f"--preset tiny --image_size {SIZE}".split()
    main(["export", f"echo_{architecture}", "--checkpoint_path", str(weights), "--output", str(path), *size])
    told = capfd.readouterr()
    assert told.err == ""
    first, second = told.out.splitlines()
    assert first == f"onnx: {path} ({path.stat().st_size / 1e6:.1f} MB)"
    assert re.fullmatch(
        r"largest difference from the network: \S+, \S+ of the largest logit; of a probability \S+", second
    )


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from synboost_monai.onnx_segmenter import OnnxSegmenter

    with pytest.raises(FileNotFoundError, match="there is no file"):
        OnnxSegmenter(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(ValueError, match="onnxruntime cannot load"):
        OnnxSegmenter(tmp_path / "text.onnx")
