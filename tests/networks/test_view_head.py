"""Test the head for the view: beside the masks, from the same features, and only if it is asked for."""

import pytest
import torch

from synboost_monai.networks import add_lora, create_segmenter, load_published, load_weights, merged_state_dict
from synboost_monai.networks.view_head import NUM_VIEW_LOGITS, ViewHead, join_view, split_view
from tests.networks.conftest import both


def network_of(architecture: str, has_view_head: bool) -> torch.nn.Module:
    torch.manual_seed(0)
    return create_segmenter(architecture, "tiny", has_view_head=has_view_head).eval()


@both
def test_masks_are_the_same_with_and_without(architecture: str) -> None:
    """The head is made last and only reads: no other weight, and no mask, changes with it."""
    plain, seeing = (network_of(architecture, has) for has in (False, True))
    own = seeing.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in plain.state_dict().items())
    assert {key.split(".")[0] for key in own.keys() - plain.state_dict().keys()} == {"view_head"}
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        masks, view = split_view(seeing(images, with_view=True))
        assert torch.equal(seeing(images), plain(images)) and torch.equal(masks, plain(images))
        assert torch.equal(view, seeing.view_logits(seeing.encode_image(images)))
        assert torch.equal(view, split_view(seeing(seeing.encode_image(images), with_view=True))[1])
    assert view.shape == (2, NUM_VIEW_LOGITS) and not torch.equal(view[0], view[1])


@both
def test_a_training_chooses_whether_there_is_a_head(architecture: str, tmp_path) -> None:
    """Weights start a network with another choice; as they are, they load strictly."""
    plain, seeing = (network_of(architecture, has) for has in (False, True))
    for network, name in ((plain, "plain.pt"), (seeing, "seeing.pt")):
        torch.save(network.state_dict(), tmp_path / name)
    other = create_segmenter(architecture, "tiny", has_view_head=True)
    before = {key: value.clone() for key, value in other.view_head.state_dict().items()}
    load_published(other, tmp_path / "plain.pt")
    assert all(torch.equal(value, before[key]) for key, value in other.view_head.state_dict().items())
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in plain.state_dict().items())
    load_published(create_segmenter(architecture, "tiny"), tmp_path / "seeing.pt")
    load_published(other, tmp_path / "seeing.pt")
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in seeing.state_dict().items())
    with pytest.raises(ValueError, match="keys are unexpected .*view_head.*; set has_view_head to true"):
        load_weights(create_segmenter(architecture, "tiny"), tmp_path / "seeing.pt")
    with pytest.raises(ValueError, match="keys are missing .*view_head.*; set has_view_head to false"):
        load_weights(other, tmp_path / "plain.pt")


def test_adapters_leave_the_head_to_learn() -> None:
    network = network_of("clipseg", True)
    add_lora(network, rank=2)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    network(images, with_view=True).sum().backward()
    assert all(p.grad is not None for p in network.view_head.parameters())
    create_segmenter("clipseg", "tiny", has_view_head=True).load_state_dict(merged_state_dict(network))


def test_the_head_tells_one_side_from_the_other() -> None:
    """A mean over the whole image would not: an upside-down image has the same mean."""
    features = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(2))
    head = ViewHead(4)
    assert not torch.allclose(head(features), head(features.flip(2)))


def test_the_view_travels_with_the_masks() -> None:
    masks, view = torch.randn(2, 3, 4, 4), torch.randn(2, NUM_VIEW_LOGITS)
    joined = join_view(masks, view)
    assert all(torch.equal(found, given) for found, given in zip(split_view(joined), (masks, view)))
    assert torch.equal(split_view(joined[1])[1], view[1])
