"""Test SPADE by distinct neighbourhoods: the table against full maps, the neighbourhoods against a count by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from synboost_monai.networks.semantic_diffusion_unet import SemanticDiffusionUNet, create_semantic_diffusion_unet
from synboost_monai.networks.spade import (
    Modulation,
    SPADEGroupNorm,
    TableModulation,
    distinct_neighbourhoods,
    join_modulations,
)

SIZE = 64


def heart(batch: int, size: int = SIZE, classes: int = 5) -> Tensor:
    """Return one-hot label maps: nested disks in a triangle that touches the image's border, different in each image."""
    y, x = np.mgrid[:size, :size] / size
    maps = []
    for number in range(batch):
        radius = np.hypot(y - 0.55, x - 0.5 - 0.03 * number)
        label_map = np.where(np.abs(x - 0.5) < 0.6 * y, 2, 0)
        label_map[radius < 0.25] = 3
        label_map[radius < 0.15] = 1
        label_map[(np.hypot(y - 0.85, x - 0.5) < 0.12)] = 4
        maps.append(torch.from_numpy(label_map))
    return F.one_hot(torch.stack(maps), classes).permute(0, 3, 1, 2).float()


def seeded(network: torch.nn.Module) -> torch.nn.Module:
    """Make zero-initialised layers random, so that every layer counts."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return network.eval()


def error(output: Tensor, reference: Tensor) -> float:
    """Return the largest difference, relative to the largest output."""
    return float((output - reference).abs().max() / reference.abs().max())


def brute_force(label_onehot: Tensor) -> int:
    """Count distinct 5x5 windows of labels one by one; outside the image is a class of its own."""
    labels = torch.where(label_onehot.any(1), label_onehot.argmax(1), -2).numpy()
    padded = np.pad(labels, ((0, 0), (2, 2), (2, 2)), constant_values=-1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
    return len({window.tobytes() for window in windows.reshape(-1, 25)})


@pytest.mark.parametrize("batch", [1, 3])
def test_each_neighbourhood_is_found_once(batch: int) -> None:
    label_onehot = heart(batch)
    windows, is_inside, index = distinct_neighbourhoods(label_onehot)
    assert len(windows) == len(is_inside) == brute_force(label_onehot) == len(index.unique())
    assert len(windows) < 0.3 * index.numel()
    # what the index points at is what stands around the pixel
    around = F.unfold(label_onehot, 5, padding=2).view(batch, 5, 5, 5, SIZE, SIZE).permute(0, 4, 5, 1, 2, 3)
    assert torch.equal(windows[index], around)
    inside = F.unfold(torch.ones(batch, 1, SIZE, SIZE), 3, padding=1).view(batch, 1, 3, 3, SIZE, SIZE)
    assert torch.equal(is_inside[index], inside.permute(0, 4, 5, 1, 2, 3))


def test_uniform_map_has_the_25_places_at_the_border() -> None:
    assert len(distinct_neighbourhoods(torch.zeros(1, 5, 16, 16)).windows) == 25
    assert (
        len(distinct_neighbourhoods(F.one_hot(torch.ones(2, 9, 9, dtype=torch.int64), 3).permute(0, 3, 1, 2)).windows)
        == 25
    )


def test_codes_that_do_not_fit_64_bits_are_compacted() -> None:
    noise = F.one_hot(torch.randint(0, 40, (2, 24, 24), generator=torch.Generator().manual_seed(0)), 40)
    label_onehot = noise.permute(0, 3, 1, 2).float()
    windows, _, index = distinct_neighbourhoods(label_onehot)
    assert len(windows) == brute_force(label_onehot) == 2 * 24 * 24
    assert torch.equal(windows[index][..., 2, 2], label_onehot.permute(0, 2, 3, 1))


def test_fractions_of_patches_are_told_apart() -> None:
    label_onehot = F.avg_pool2d(heart(1), 2)
    windows, _, index = distinct_neighbourhoods(label_onehot, denominator=4)
    assert torch.equal(windows[index][..., 2, 2], label_onehot.permute(0, 2, 3, 1))
    with pytest.raises(ValueError, match="hold values between 0 and 1"):
        distinct_neighbourhoods(label_onehot)


@pytest.mark.parametrize("num_classes", [5, 3])
def test_table_equals_full_maps(num_classes: int) -> None:
    torch.manual_seed(0)
    norm = SPADEGroupNorm(32, num_classes, 128, 8).double()
    label_onehot = heart(2, classes=5)[:, :num_classes].double()
    maps, table = norm.modulation(label_onehot), norm.table_modulation(distinct_neighbourhoods(label_onehot))
    for ours, reference in zip(table.at_pixels(), maps.at_pixels()):
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-12)
    x = torch.randn(2, 32, SIZE, SIZE, dtype=torch.float64)
    torch.testing.assert_close(norm(x, table), norm(x, maps), rtol=0, atol=1e-11)
    assert table.scale.shape == (len(table.index.unique()), 32)


def test_rows_of_a_table_do_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    norm, maps = SPADEGroupNorm(16, 5, 8, 4), heart(3)
    alone = norm.table_modulation(distinct_neighbourhoods(maps[:1])).at_pixels()
    together = norm.table_modulation(distinct_neighbourhoods(maps)).at_pixels()
    assert all(torch.equal(a, b[:1]) for a, b in zip(alone, together))


@pytest.mark.parametrize(
    ("preset", "dtype", "tolerance"),
    [("published", torch.float32, 1e-5), ("tiny", torch.bfloat16, 3e-2)],  # older processors emulate bfloat16, slowly
)
def test_every_path_equals_the_plain_forward(preset: str, dtype: torch.dtype, tolerance: float) -> None:
    """The network runs at 64 px: cached maps, tables, and both for two conditions that share the encoder."""
    layout = {"base_channels": 32, "num_head_channels": 32} if preset == "published" else {}
    network = seeded(create_semantic_diffusion_unet(preset, image_size=SIZE, **layout))
    assert isinstance(network, SemanticDiffusionUNet)
    channels = network.in_channels
    label_onehot, x = heart(2), torch.randn(2, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    timesteps, null = torch.tensor([40, 900]), torch.zeros(1, 5, SIZE, SIZE)
    with torch.no_grad():
        plain = network(x, timesteps, label_onehot)
        without = network(x, timesteps)
        network.to(dtype)
        for spade in ("maps", "table"):
            features, modulations = network.encode(x, timesteps), network.condition(label_onehot, spade)
            assert error(network.decode(features, modulations).float(), plain) < tolerance
            both = join_modulations([modulations, network.condition(null, spade)], batch=2)
            conditional, unconditional = network.decode(features, both).float().chunk(2)
            assert error(conditional, plain) < tolerance and error(unconditional, without) < tolerance
    assert error(without, plain) > 3e-2


def test_one_image_with_two_conditions() -> None:
    network = seeded(create_semantic_diffusion_unet("tiny"))
    assert isinstance(network, SemanticDiffusionUNet)
    label_onehot, x, timesteps = heart(2, 16), torch.randn(1, 1, 16, 16), torch.tensor([300])
    with torch.no_grad():
        both = join_modulations([network.condition(label_onehot[:1]), network.condition(label_onehot[1:])], batch=1)
        outputs = network.decode(network.encode(x, timesteps), both)
        for output, label_map in zip(outputs, label_onehot):
            torch.testing.assert_close(output, network(x, timesteps, label_map[None])[0])


def test_table_stands_where_it_saves_memory() -> None:
    network = create_semantic_diffusion_unet("published", image_size=SIZE, base_channels=32, num_head_channels=32)
    forms = [type(modulation) for modulation in network.condition(heart(1), "table")]
    assert forms[0] is Modulation and forms[-1] is TableModulation
    numbers = [
        sum(m.scale.numel() + m.shift.numel() for m in network.condition(heart(4), spade))
        for spade in ("maps", "table")
    ]
    assert numbers[1] < 0.3 * numbers[0]
    with pytest.raises(ValueError, match="spade must be maps or table, got 'rows'"):
        network.condition(heart(1), "rows")
    with pytest.raises(ValueError, match="one-hot label maps alone"):
        network.condition(heart(1) * 0.3, "table")
