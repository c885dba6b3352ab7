"""Test handlers of the diffusion bundle: validation with fixed noise, pictures of samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ignite.engine import Engine
from torch import Tensor, nn

from synboost_monai.distributed import is_main_process
from synboost_monai.training.diffusion import DiffusionPictures, FixedNoise, loss_of, num_images
from synboost_monai.transforms.label_map_array import colour_sector_label_map


class Writer:
    """Stand in for TensorBoard's writer."""

    def __init__(self) -> None:
        self.pictures: list[tuple[str, Tensor, int]] = []

    def add_image(self, tag: str, picture: Tensor, global_step: int) -> None:
        self.pictures.append((tag, picture, global_step))


class Inferer:
    """Return grey 0 in [-1, 1], and keep the arguments of the call."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, label_onehot: Tensor, network: nn.Module, **arguments: Any) -> Tensor:
        self.calls.append({"label_onehot": label_onehot, "network": network, **arguments})
        return torch.zeros(len(label_onehot), 1, *label_onehot.shape[2:])


def make_batch(batch: int = 6, **more: Any) -> dict[str, Any]:
    label_map = torch.arange(batch)[:, None, None, None].expand(-1, 1, 4, 4) % 5
    onehot = nn.functional.one_hot(label_map[:, 0], 5).permute(0, 3, 1, 2).to(torch.uint8)
    return {"image": torch.ones(batch, 1, 4, 4), "label_onehot": onehot, "sector_label_map": label_map, **more}


def validate(batches: list[dict[str, Any]], runs: int = 1, **options: Any) -> tuple[Writer, Inferer]:
    writer, inferer = Writer(), Inferer()
    engine = Engine(lambda engine, batch: None)
    engine.network = nn.Identity()  # type: ignore[attr-defined]
    engine.state.device = torch.device("cpu")
    DiffusionPictures(inferer, writer, **options).attach(engine)
    for _ in range(runs):
        engine.state.max_epochs = None
        engine.state.device = torch.device("cpu")
        engine.run(batches, max_epochs=1)
    return writer, inferer


def test_picture_shows_label_map_synthetic_and_real_image() -> None:
    writer, inferer = validate([make_batch(), make_batch()])
    ((tag, picture, step),) = writer.pictures
    assert tag == "label map, synthetic, real" and step == 1
    assert picture.shape == (3, 3 * 4, 4 * 4)  # rows, columns of 4 px; the first four images of the first batch
    for column in range(4):
        here = picture[:, :, 4 * column : 4 * column + 4]
        colours = torch.from_numpy(colour_sector_label_map(make_batch()["sector_label_map"][column, 0].numpy()))
        assert torch.equal(here[:, :4], colours.permute(2, 0, 1) / 255)
        assert (here[:, 4:8] == 0.5).all() and (here[:, 8:] == 1.0).all()
    assert isinstance(inferer.calls[0]["network"], nn.Identity)
    assert inferer.calls[0]["label_onehot"].dtype == torch.float32


def test_each_column_keeps_its_noise() -> None:
    _, inferer = validate([make_batch()], runs=2)
    assert [call["seeds"].tolist() for call in inferer.calls] == [[0, 1, 2, 3]] * 2


def test_classes_go_to_the_inferer_where_there_are_any() -> None:
    _, told = validate([make_batch(class_label=torch.tensor([4, 3, 2, 1, 0, 4]))])
    assert told.calls[0]["class_labels"].tolist() == [4, 3, 2, 1]
    _, untold = validate([make_batch()])
    assert "class_labels" not in untold.calls[0]


def test_other_ranks_draw_no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert not is_main_process()
    writer, inferer = validate([make_batch()])
    assert not writer.pictures and not inferer.calls


def test_validation_noise_is_the_same_each_time_and_leaves_no_trace() -> None:
    draws: list[float] = []
    engine = Engine(lambda engine, batch: draws.append(torch.rand(1).item()))
    FixedNoise(3).attach(engine)
    torch.manual_seed(0)
    expected = torch.rand(2).tolist()
    torch.manual_seed(0)
    between = []
    for _ in range(2):
        engine.run([0, 1], max_epochs=1)
        between.append(torch.rand(1).item())
    assert draws[:2] == draws[2:] and draws[0] != draws[1]
    assert between == expected


def test_loss_and_size_of_a_batch() -> None:
    loss = torch.tensor(2.0, requires_grad=True)
    assert not loss_of({"loss": loss}).requires_grad and loss_of({"loss": loss}) == 2
    assert num_images({"timesteps": torch.zeros(5)}) == 5
