"""Hold what the conversion of weights can be asked for: each field is a flag of `synboost weights`."""

from __future__ import annotations

from dataclasses import dataclass

ARCHITECTURES = ("clipseg", "cris", "semantic_diffusion")
"""Networks that weights can be converted to."""


@dataclass(frozen=True)
class ConvertOptions:
    """Options of a conversion.

    Args:
        architecture: convert: clipseg, cris or semantic_diffusion; by default it follows from the keys.
        preset: convert: the size that the checkpoint was made with; by default what the model.json beside it says, else published.
        partial: convert: also take CLIP alone for CRIS; the rest is then random, good to start a training from.
        dtype: convert: float32, or float16 or bfloat16 for a file of half the size.
        licence: convert: licence of the weights, for model.json.
    """

    architecture: str | None = None
    preset: str | None = None
    partial: bool = False
    dtype: str = "float32"
    licence: str | None = None
