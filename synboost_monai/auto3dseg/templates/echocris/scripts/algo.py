"""Define the algorithm where `BundleGen` looks for it: a class named after its folder."""

from synboost_monai.auto3dseg.algo import EchoAlgo


class EchocrisAlgo(EchoAlgo):
    """Train CRIS of the bundle echo_cris."""
