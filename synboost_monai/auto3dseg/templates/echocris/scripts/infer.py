"""Provide inference where `BundleAlgo.predict` looks for it: in a class of this name."""

from synboost_monai.auto3dseg.infer import InferClass

__all__ = ["InferClass"]
