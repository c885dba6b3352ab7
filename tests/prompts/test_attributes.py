"""Test that shapes drawn by formula get their names, whatever their turn and pixel spacing."""

import json
from pathlib import Path

import numpy as np
import pytest

from synboost_monai.prompts import ask_shape, shape_of_mask
from synboost_monai.prompts.attributes import shape_in_answer
from synboost_monai.records import SHAPES
from synboost_monai.structures import MYOCARDIUM


def draw(shape: str, degrees: float = 0.0, spacing_mm: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    """Draw the mask of a shape about 40 mm large in a field of 80 mm, turned about its centre."""
    rows, columns = (int(80 / step) for step in spacing_mm)
    y, x = np.mgrid[:rows, :columns].astype(float)
    y, x = (y + 0.5) * spacing_mm[0] - 40, (x + 0.5) * spacing_mm[1] - 40
    turn = np.deg2rad(degrees)
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    return {
        "circle": u**2 + v**2 < 20**2,
        "oval": (u / 14) ** 2 + (v / 25) ** 2 < 1,
        "square": np.maximum(abs(u), abs(v)) < 17,
        "rectangle": (abs(u) < 12) & (abs(v) < 25),
        "triangle": (v > -22) & (v < 22) & (abs(u) < (v + 22) * 0.4),
    }[shape]


@pytest.mark.parametrize("degrees", [0, 20, 45, 80])
@pytest.mark.parametrize("shape", SHAPES)
def test_drawn_shape_is_named(shape: str, degrees: float) -> None:
    assert shape_of_mask(draw(shape, degrees), (0.5, 0.5)) == shape


@pytest.mark.parametrize("shape", SHAPES)
def test_shape_is_judged_in_millimetres(shape: str) -> None:
    assert shape_of_mask(draw(shape, 10, spacing_mm=(0.4, 0.8)), (0.4, 0.8)) == shape
    circle_in_pixels = draw("circle")
    assert shape_of_mask(circle_in_pixels, (0.5, 1.0)) == "oval"


def test_largest_part_decides() -> None:
    mask = draw("triangle")
    mask[:6, :6] = True
    assert shape_of_mask(mask, (0.5, 0.5)) == "triangle"


def test_hole_and_cavity_do_not_count() -> None:
    ring = draw("circle") & ~np.roll(draw("oval"), 30, axis=0)  # a thick U, as the myocardium is
    assert shape_of_mask(ring, (0.5, 0.5)) == "circle"


def test_mask_at_the_border_and_label_values() -> None:
    label_map = np.zeros((40, 40), dtype=np.uint8)
    label_map[:20, -20:] = 3
    assert shape_of_mask(label_map == 3, (0.3, 0.3)) == "square"
    assert shape_of_mask(label_map, (0.3, 0.3)) == "square"


def test_empty_or_minute_mask_gives_no_shape() -> None:
    mask = np.zeros((32, 32), dtype=bool)
    assert shape_of_mask(mask, (0.3, 0.3)) is None
    mask[4:6, 4:6] = True
    assert shape_of_mask(mask, (0.3, 0.3)) is None


@pytest.mark.parametrize("size", [(1, 12), (12, 1), (3, 3)])
def test_thin_mask_is_still_named(size: tuple[int, int]) -> None:
    mask = np.zeros((32, 32), dtype=bool)
    mask[: size[0], : size[1]] = True
    assert shape_of_mask(mask, (0.3, 0.3)) == ("square" if size == (3, 3) else "rectangle")


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mask must be \(H, W\), got shape \(1, 4, 4\)"):
        shape_of_mask(np.ones((1, 4, 4)), (0.3, 0.3))
    with pytest.raises(ValueError, match="spacing_mm must be two positive numbers"):
        shape_of_mask(np.ones((4, 4)), (0.3, 0.0))


@pytest.mark.parametrize(
    ("answer", "shape"),
    [
        ("triangular", "triangle"),
        ("It is Round.", "circle"),
        ("an oval", "oval"),
        ("rectangular", "rectangle"),
        ("blue", None),
    ],
)
def test_answers_are_understood(answer: str, shape: str | None) -> None:
    assert shape_in_answer(answer) == shape


def test_folder_without_model_is_refused(tmp_path: Path) -> None:
    image = np.zeros((8, 8))
    with pytest.raises(FileNotFoundError, match="no visual question answering model in .*config.json is missing"):
        ask_shape(image, image, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}), encoding="utf-8")
    with pytest.raises(ValueError, match="is no visual question answering model of transformers: "):
        ask_shape(image, np.ones((8, 8)), tmp_path)
    with pytest.raises(ValueError, match=r"must both be \(H, W\), got \(8, 8\) and \(4, 4\)"):
        ask_shape(image, np.ones((4, 4)), tmp_path)


def test_model_from_a_folder_answers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] what is the shape of in green box ? myocardium".split()
    config = transformers.ViltConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        vocab_size=len(words),
        image_size=32,
        patch_size=16,
        id2label={0: "no", 1: "triangular", 2: "blue"},
    )
    model = transformers.ViltForQuestionAnswering(config)
    model.classifier[-1].weight.data.zero_()
    model.classifier[-1].bias.data.copy_(model.classifier[-1].bias.new_tensor([0, 9, 0]))  # always "triangular"
    model.save_pretrained(tmp_path)
    tokenizer = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    transformers.ViltProcessor(transformers.ViltImageProcessor(size={"shortest_edge": 32}), tokenizer).save_pretrained(
        tmp_path
    )

    image = np.random.default_rng(0).random((40, 48))
    assert ask_shape(image, draw("oval")[60:100, 50:98], tmp_path, structure=MYOCARDIUM) == "triangle"
    assert ask_shape(image, np.zeros((40, 48)), tmp_path) is None
