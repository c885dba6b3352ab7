"""Provide the bundle of a segmenter, CRIS's or both in turn."""

import pytest

BUNDLES = ("echo_cris", "echo_clipseg")
both = pytest.mark.parametrize("bundle", BUNDLES, indirect=True)
"""For what depends on the network. What the configs say is tested once: `test_bundles_differ_only_where_the_networks_do` compares them."""


@pytest.fixture(scope="module")
def bundle(request: pytest.FixtureRequest) -> str:
    return str(getattr(request, "param", "echo_cris"))
