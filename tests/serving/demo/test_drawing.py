"""Test that brush strokes become classes, whatever the browser makes of their borders."""

import itertools

import numpy as np
import pytest
from PIL import Image, ImageDraw

from synboost_monai.serving.demo import drawing
from synboost_monai.structures import LEFT_ATRIUM, LEFT_VENTRICULAR_CAVITY, MYOCARDIUM, STRUCTURES

SCALE = 4
"""Strokes are drawn so much larger and shrunk, which mixes their colours at the borders as a browser does."""


def picture(*strokes: tuple[str, tuple[int, ...], tuple[int, int, int]], width: int = 0) -> np.ndarray:
    """Draw an RGBA layer of ellipses (box, colour) with smooth borders; width 0 fills them."""
    height, columns = drawing.CANVAS_SHAPE
    large = Image.new("RGBA", (columns * SCALE, height * SCALE))
    for kind, box, colour in strokes:
        assert kind == "ellipse"
        options = {"fill": (*colour, 255)} if not width else {"outline": (*colour, 255), "width": width * SCALE}
        ImageDraw.Draw(large).ellipse([n * SCALE for n in box], **options)
    return np.asarray(large.resize((columns, height), Image.Resampling.BOX))


def exact(box: tuple[int, ...]) -> np.ndarray:
    """Return the pixels whose centre is in the ellipse of a box."""
    rows, columns = np.mgrid[: drawing.CANVAS_SHAPE[0], : drawing.CANVAS_SHAPE[1]] + 0.5
    x0, y0, x1, y1 = box
    return ((columns - (x0 + x1) / 2) / ((x1 - x0) / 2)) ** 2 + ((rows - (y0 + y1) / 2) / ((y1 - y0) / 2)) ** 2 < 1


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


WALL, CAVITY, ATRIUM = (140, 60, 250, 200), (160, 80, 230, 190), (160, 205, 230, 275)


def test_filled_strokes_on_each_other_give_their_classes() -> None:
    layer = picture(
        ("ellipse", WALL, MYOCARDIUM.colour),
        ("ellipse", CAVITY, LEFT_VENTRICULAR_CAVITY.colour),
        ("ellipse", ATRIUM, LEFT_ATRIUM.colour),
    )
    assert len(np.unique(layer.reshape(-1, 4), axis=0)) > 20  # borders are mixed
    label_map = drawing.drawn_label_map([layer])
    assert label_map.shape == drawing.CANVAS_SHAPE and label_map.dtype == np.uint8
    assert set(np.unique(label_map)) == {0, 1, 2, 3}
    assert dice(label_map == 1, exact(CAVITY)) > 0.98
    assert dice(label_map == 2, exact(WALL) & ~exact(CAVITY)) > 0.96
    assert dice(label_map == 3, exact(ATRIUM)) > 0.98


def test_no_third_class_appears_between_two_colours() -> None:
    for first, second in itertools.permutations(STRUCTURES, 2):
        layer = picture(("ellipse", WALL, first.colour), ("ellipse", CAVITY, second.colour))
        found = set(np.unique(drawing.drawn_label_map([layer]))) - {0}
        assert found == {first.class_index, second.class_index}


def test_outlines_of_cavity_and_atrium_are_filled_and_those_of_the_muscle_are_not() -> None:
    boxes = {LEFT_VENTRICULAR_CAVITY: CAVITY, LEFT_ATRIUM: ATRIUM}
    for structure, box in boxes.items():
        label_map = drawing.drawn_label_map([picture(("ellipse", box, structure.colour), width=6)])
        assert dice(label_map == structure.class_index, exact(box)) > 0.97
    wall = drawing.drawn_label_map([picture(("ellipse", WALL, MYOCARDIUM.colour), width=8)])
    assert wall[130, 195] == 0 and 0.1 < (wall == 2).sum() / exact(WALL).sum() < 0.5


def test_layers_of_another_size_are_brought_to_the_canvas() -> None:
    layer = picture(("ellipse", CAVITY, LEFT_VENTRICULAR_CAVITY.colour))
    twice = layer.repeat(2, axis=0).repeat(2, axis=1)
    assert np.array_equal(drawing.drawn_label_map([twice]), drawing.drawn_label_map([layer]))


def test_later_layers_lie_above_earlier_ones() -> None:
    below = picture(("ellipse", WALL, MYOCARDIUM.colour))
    above = picture(("ellipse", CAVITY, LEFT_VENTRICULAR_CAVITY.colour))
    label_map = drawing.drawn_label_map([below, above])
    assert label_map[130, 195] == 1 and label_map[70, 195] == 2


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "nothing is drawn yet"),
        ([np.zeros((*drawing.CANVAS_SHAPE, 4), np.uint8)], "nothing is drawn yet"),
        ([np.zeros((8, 8, 3), np.uint8)], r"expected layers \(h, w, 4\), RGBA, got \(8, 8, 3\)"),
    ],
)
def test_what_is_no_drawing_is_refused(layers: list[np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        drawing.drawn_label_map(layers)


def test_the_canvas_is_the_default_sector_and_brushes_have_the_structures_colours() -> None:
    canvas = drawing.canvas()
    assert canvas.shape == (*drawing.CANVAS_SHAPE, 3) and set(np.unique(canvas)) == {0, 64}
    assert canvas[-5, drawing.CANVAS_SHAPE[1] // 2].tolist() == [64, 64, 64] and canvas[0, 0].tolist() == [0, 0, 0]
    assert drawing.brush_colours() == ["#e64b3c", "#3caa5a", "#4678e6"]
