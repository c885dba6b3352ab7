"""Define the algorithm where `BundleGen` looks for it: a class named after its folder."""

from synboost_monai.auto3dseg.algo import EchoAlgo


class EchoclipsegAlgo(EchoAlgo):
    """Train CLIPSeg of the bundle echo_clipseg."""
