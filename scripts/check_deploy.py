#!/usr/bin/env python
"""Run an unpacked package (or its model.ts) in MONAI Deploy's MonaiBundleInferenceOperator, and compare with `monai.bundle run`.

    python scripts/check_deploy.py echo_cris IMAGE.png --expected OUT/IMAGE.png

Needs monai-deploy-app-sdk 4 with Holoscan (Linux; a GPU is not needed) and synboost-monai in one environment. First segment the image
with the same package by `python -m monai.bundle run ... --output_dir OUT`. Prints the share of pixels that agree and fails below 99.9 %.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage

LEAST_AGREEMENT = 0.999


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="folder of an unpacked package, or a model.ts of ckpt_export")
    parser.add_argument("image", type=Path, help="PNG")
    parser.add_argument("--expected", type=Path, required=True, help="label map that monai.bundle run wrote, PNG")
    options = parser.parse_args()
    pixels = np.asarray(PillowImage.open(options.image).convert("L"))
    label_map = segment(options.bundle, pixels)
    expected = np.asarray(PillowImage.open(options.expected))
    if label_map.shape != expected.shape:
        raise SystemExit(f"check_deploy.py: label map is {label_map.shape}, expected {expected.shape}")
    agreement = float((label_map == expected).mean())
    print(f"{options.bundle}: {agreement:.2%} of the pixels agree; classes {np.unique(label_map).tolist()}")
    if agreement < LEAST_AGREEMENT:
        raise SystemExit(1)


def segment(bundle: Path, pixels: np.ndarray) -> np.ndarray:
    """Return the label map (H, W) of a grey image (H, W), from an application of three operators."""
    from monai.deploy.core import AppContext, Application, Image, IOType, Operator, OperatorSpec
    from monai.deploy.operators.monai_bundle_inference_operator import (
        BundleConfigNames,
        IOMapping,
        MonaiBundleInferenceOperator,
    )

    found: list[np.ndarray] = []

    class Source(Operator):
        """Emit the image as the SDK's readers do without DICOM facts: stored order, (W, H, 1)."""

        def setup(self, spec: OperatorSpec) -> None:
            spec.output("image")

        def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
            op_output.emit(Image(np.ascontiguousarray(pixels.T[..., None]), metadata={}), "image")

    class Sink(Operator):
        """Keep the label map, (1, H, W)."""

        def setup(self, spec: OperatorSpec) -> None:
            spec.input("pred")

        def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
            found.append(np.asarray(op_input.receive("pred").asnumpy()))

    class App(Application):
        def compose(self) -> None:
            from holoscan.conditions import CountCondition

            source, sink = Source(self, CountCondition(self, 1), name="source"), Sink(self, name="sink")
            operator = MonaiBundleInferenceOperator(
                self,
                app_context=AppContext({}),
                input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
                output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
                bundle_path=bundle.resolve(),
                bundle_config_names=BundleConfigNames(config_names=["inference", "deploy"]),
                name="segmenter",
            )
            self.add_flow(source, operator, {("image", "image")})
            self.add_flow(operator, sink, {("pred", "pred")})

    App([]).run()
    if len(found) != 1:
        raise SystemExit("check_deploy.py: the application gave no label map; see its log above")
    return found[0].reshape(found[0].shape[-2:])


if __name__ == "__main__":
    main()
