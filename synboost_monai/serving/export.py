"""Export a bundle's segmenter with its weights as ONNX or TorchScript: `synboost export BUNDLE --format onnx`.

Both formats take `image` (B, 3, N, N) and `input_ids` (B, S, L) and give `pred`, logits (B, S, N, N), for any number of images B and
prompts S; side N and length L of a prompt are fixed. A written file is compared with the network before it gets its name.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from synboost_monai import __version__
from synboost_monai.bundle_run import bundle_dir, config_files, is_segmenter
from synboost_monai.files import atomic_path, read_text, sha256_of
from synboost_monai.model_card import read_card
from synboost_monai.paths import refuse_overwriting
from synboost_monai.predictor import open_bundle

if TYPE_CHECKING:
    from torch import Tensor, nn

SUFFIX_OF_FORMAT = {"onnx": ".onnx", "torchscript": ".ts"}
"""Format of `synboost export` -> suffix of the file."""
ONNX_OPSET = 18
"""Version of ONNX's operators."""
TOLERANCE = 1e-4
"""Largest difference from the network, as a share of its largest logit, that a written file may have."""
CHECKED_COUNTS = ((1, 1), (2, 3))
"""(images, prompts) that a written file is compared with."""
SETTINGS = ("image_size", "keep_aspect", "image_mean", "image_std", "padding_id", "threshold", "preset")
"""Keys of inference.yaml that a user of the file has to know."""


class Difference(NamedTuple):
    """Hold how far a file's logits are from the network's."""

    absolute: float
    """Largest difference of a logit."""
    relative: float
    """The same as a share of the largest logit."""
    probability: float
    """Largest difference of a probability."""


def export_bundle(
    bundle: str,
    output: str | os.PathLike[str] | None = None,
    *,
    format: str = "onnx",
    checkpoint_path: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[Path, Difference | None]:
    """Write a segmenter with its weights as one file.

    Args:
        bundle: name or folder.
        output: the file; BUNDLE.onnx or BUNDLE.ts here by default.
        format: a key of `SUFFIX_OF_FORMAT`.
        checkpoint_path: the weights; by default the bundle's models/model.pt.
        overrides: keys of inference.yaml that the weights need, such as preset and image_size.
    Returns:
        the file, and its difference from the network; None where onnxruntime is not installed.
    Raises:
        FileNotFoundError: if the weights do not exist.
        ValueError: if they do not fit, the bundle does not segment, or a package for the format is missing.
        RuntimeError: if the file's logits differ from the network's; it is then not written.
    """
    if format not in SUFFIX_OF_FORMAT:
        raise ValueError(f"--format must be {' or '.join(SUFFIX_OF_FORMAT)}, got {format!r}")
    if not is_segmenter(bundle):
        raise ValueError(f"{bundle} is no segmenter's bundle; echo_clipseg and echo_cris can be exported")
    opened = open_bundle(bundle, checkpoint_path, overrides)
    weights_path = opened.checkpoint_path
    path = Path(output) if output is not None else Path(f"{bundle_dir(bundle).name}{SUFFIX_OF_FORMAT[format]}")
    refuse_overwriting([path], [weights_path, config_files(bundle, "inference")], "name another file with --output")
    network = opened.network_as_trained()
    settings = {key: opened.setting(key) for key in SETTINGS}
    card = read_card(weights_path)
    settings |= {
        "model_card": None if card is None else card.as_json(),
        "bundle": bundle_dir(bundle).name,
        "classes": json.loads(read_text(bundle_dir(bundle) / "configs/metadata.json"))["network_data_format"][
            "outputs"
        ]["pred"]["channel_def"],
        "weights_sha256": sha256_of(weights_path),
        "synboost_version": __version__,
        "intended_use": "Research. Not for diagnosis.",
    }
    write, run = (write_onnx, onnx_runner) if format == "onnx" else (write_torchscript, torchscript_runner)
    with atomic_path(path) as temporary:
        write(network, temporary, settings)
        call = run(temporary)
        difference = None if call is None else measure_difference(network, call, settings["image_size"])
        if difference is not None and difference.relative > TOLERANCE:
            raise RuntimeError(
                f"{path}: the exported network differs by {difference.relative:.1e} of the largest logit, "
                f"expected {TOLERANCE:.0e} at most; it was not written. Look at the weights, take the versions of constraints.txt, or "
                "the other --format"
            )
    return path, difference


def write_onnx(network: nn.Module, path: str | os.PathLike[str], settings: dict[str, Any]) -> None:
    """Write a segmenter as ONNX; `settings` go into its metadata, for `OnnxSegmenter`.

    Args:
        network: a segmenter in evaluation mode.
        path: the file.
        settings: image_size, and whatever else a user must know; context_length is added.
    """
    import torch

    from synboost_monai.networks.export import example_inputs, network_context_length, quiet_recording
    from synboost_monai.onnx_segmenter import SETTINGS_KEY

    try:
        import onnx
    except ImportError as error:
        raise ValueError("ONNX needs a package that is not installed: pip install 'synboost-monai[export]'") from error
    settings["context_length"] = network_context_length(network)
    with torch.no_grad(), quiet_recording():
        torch.onnx.export(
            network,
            example_inputs(settings["image_size"], settings["context_length"]),
            str(path),
            input_names=["image", "input_ids"],
            output_names=["pred"],
            opset_version=ONNX_OPSET,
            dynamic_axes={name: {0: "batch", 1: "prompts"} for name in ("input_ids", "pred")} | {"image": {0: "batch"}},
            dynamo=False,  # by tracing: the newer exporter takes minutes for these networks
        )
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {SETTINGS_KEY: json.dumps(settings, sort_keys=True)})
    onnx.save(model, str(path))


def write_torchscript(network: nn.Module, path: str | os.PathLike[str], settings: dict[str, Any]) -> None:
    """Write a segmenter as TorchScript with `settings` as extra file synboost.json; `forward(image, input_ids=None)`.

    Without `input_ids` it looks for the three structures by their P1 prompts. The arguments are those of `write_onnx`.
    """
    import torch

    from synboost_monai.networks.export import ExportedSegmenter, quiet_recording

    exported = ExportedSegmenter(network, settings["image_size"])
    settings["context_length"] = exported.context_length
    with quiet_recording():
        script = torch.jit.script(exported.eval())
        content = io.BytesIO()  # torch ends the whole process where the disk is full
        torch.jit.save(script, content, _extra_files={"synboost.json": json.dumps(settings, sort_keys=True)})
    Path(path).write_bytes(content.getbuffer())


Runner = Callable[["Tensor", "Tensor"], "Tensor"]
"""Function (image, input_ids) -> logits."""


def onnx_runner(path: str | os.PathLike[str], num_threads: int = 0) -> Runner | None:
    """Return an ONNX file as a function, or None if onnxruntime is not installed."""
    import torch

    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(image: Tensor, input_ids: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"image": image.numpy(), "input_ids": input_ids.numpy()})[0])

    return run


def torchscript_runner(path: str | os.PathLike[str]) -> Runner:
    """Return a TorchScript file as a function."""
    import torch

    return torch.jit.load(str(path), map_location="cpu").eval()


def measure_difference(
    network: nn.Module, run: Runner, image_size: int, counts: tuple[tuple[int, int], ...] = CHECKED_COUNTS
) -> Difference:
    """Return the largest difference of a file's logits from the network's, on random images and real prompts.

    Args:
        network: in evaluation mode.
        run: the file as a function.
        image_size: side of the images.
        counts: (images, prompts) of each comparison.
    Returns:
        the differences; infinite if the file gives another shape, or values that are not finite.
    """
    import torch

    from synboost_monai.networks.export import network_context_length
    from synboost_monai.prompts import LEVELS, PromptTokenizer, structure_prompts

    known = {"view": "apical_four_chamber", "phase": "end_diastole", "sex": "female", "age": 56}
    texts = [prompt.text for level in LEVELS[1:6] for prompt in structure_prompts(level, known)]
    ids = PromptTokenizer(network_context_length(network))(texts)
    generator = torch.Generator().manual_seed(0)
    absolute = largest = probability = 0.0
    for num_images, num_prompts in counts:
        image = torch.randn(num_images, 3, image_size, image_size, generator=generator)
        places = torch.arange(num_images * num_prompts) % len(ids)
        input_ids = ids[places].unflatten(0, (num_images, num_prompts)).contiguous()
        with torch.no_grad():
            expected, found = network(image, input_ids), run(image, input_ids)
        if found.shape != expected.shape or not bool(found.isfinite().all()):
            return Difference(float("inf"), float("inf"), float("inf"))
        absolute = max(absolute, float((found - expected).abs().max()))
        probability = max(probability, float((found.sigmoid() - expected.sigmoid()).abs().max()))
        largest = max(largest, float(expected.abs().max()))
    return Difference(absolute, absolute / largest if largest > 0 else absolute, probability)
