"""Inference as `BundleAlgo.predict` looks for it: a class of this name."""

from synboost_monai.auto3dseg.infer import InferClass

__all__ = ["InferClass"]
