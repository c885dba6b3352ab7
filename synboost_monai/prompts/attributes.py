"""Find the shape of a structure from its mask, by a geometric rule or a visual question answering model in a local folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from synboost_monai.structures import Structure

if TYPE_CHECKING:
    from numpy.typing import NDArray

MIN_PIXELS = 9
"""Smallest mask whose shape is judged, in pixels."""
MAX_ROUND_ELONGATION = 1.25
"""Largest ratio of long to short axis of a circle or square; beyond it the form is an oval or rectangle (our choice)."""

_ANSWERS = {
    "circle": ("circle", "circular", "round"),
    "triangle": ("triangle", "triangular", "cone"),
    "oval": ("oval", "ellipse", "elliptical", "egg"),
    "square": ("square",),
    "rectangle": ("rectangle", "rectangular"),
}
"""Words in an answer -> shape."""


def shape_of_mask(mask: NDArray[Any], spacing_mm: tuple[float, float]) -> str | None:
    """Return the paper's word for the shape of a mask: circle, triangle, oval, square or rectangle.

    The outline is the convex hull of the largest connected part, in millimetres, so the U of the myocardium is judged
    by what it encloses. Three forms of the same area are compared with the hull: the ellipse with its second moments, its
    smallest enclosing rectangle (scaled about the centre) and its largest inscribed triangle (scaled likewise). The
    form with the largest intersection over union wins. An ellipse or rectangle whose long axis is at most
    `MAX_ROUND_ELONGATION` times the short one is a circle or a square.

    Args:
        mask: (H, W), non-zero inside the structure.
        spacing_mm: (row, column) size of a pixel.
    Returns:
        A word of `records.SHAPES`; None if the mask is empty or smaller than `MIN_PIXELS`.
    Raises:
        ValueError: if the mask is not 2-D or the spacing is not positive.
    """
    mask = np.asarray(mask) != 0
    if mask.ndim != 2:
        raise ValueError(f"attributes.py: mask must be (H, W), got shape {mask.shape}")
    if len(spacing_mm) != 2 or min(spacing_mm) <= 0:
        raise ValueError(
            f"attributes.py: spacing_mm must be two positive numbers (row, column), got {tuple(spacing_mm)}"
        )
    part = _largest_part(mask)
    if part.sum() < MIN_PIXELS:
        return None

    hull = _hull_mm(part, spacing_mm)  # (N, 2)
    points = _grid_over(hull)  # (M, 2)
    inside = _inside_convex(points, hull)
    ellipse, ellipse_elongation = _inside_ellipse(points, inside)
    rectangle, rectangle_elongation = _smallest_rectangle(hull)
    area = _polygon_area(hull)
    overlaps = {
        "ellipse": _intersection_over_union(inside, ellipse),
        "rectangle": _intersection_over_union(inside, _inside_convex(points, _scaled_to_area(rectangle, area))),
        "triangle": _intersection_over_union(
            inside, _inside_convex(points, _scaled_to_area(_largest_triangle(hull), area))
        ),
    }
    form = max(overlaps, key=lambda name: overlaps[name])
    if form == "ellipse":
        return "circle" if ellipse_elongation <= MAX_ROUND_ELONGATION else "oval"
    if form == "rectangle":
        return "square" if rectangle_elongation <= MAX_ROUND_ELONGATION else "rectangle"
    return "triangle"


def ask_shape(
    image: NDArray[Any], mask: NDArray[Any], model_path: str | Path, *, structure: Structure | None = None
) -> str | None:
    """Ask a visual question answering model for the shape, as in the paper (which asked OFA).

    The model is shown the image with a green box around the mask and asked "What is the shape of the <structure> in the
    green box?". Any model of transformers' `AutoModelForVisualQuestionAnswering` (ViLT, BLIP, BLIP-2) saved in a folder
    works; nothing is downloaded.

    Args:
        image: (H, W), any range; scaled to 0..255 by its minimum and maximum.
        mask: (H, W), non-zero inside the structure.
        model_path: folder with the model and its processor, as `save_pretrained` writes them.
        structure: named in the question; "structure" if None.
    Returns:
        A word of `records.SHAPES`; None if the mask is empty or the answer names no such shape.
    Raises:
        FileNotFoundError: if the folder holds no model.
        ValueError: if image and mask differ in shape, or transformers cannot load the model.
    """
    image, mask = np.asarray(image, dtype=np.float64), np.asarray(mask) != 0
    if image.ndim != 2 or image.shape != mask.shape:
        raise ValueError(f"attributes.py: image and mask must both be (H, W), got {image.shape} and {mask.shape}")
    if not (Path(model_path) / "config.json").is_file():
        raise FileNotFoundError(
            f"attributes.py: no visual question answering model in {model_path} (config.json is missing); "
            "give a folder written by save_pretrained of transformers"
        )
    if not mask.any():
        return None
    words = structure.prompt_words.lower() if structure is not None else "structure"
    answer = _answer(
        str(model_path), _boxed_picture(image, mask), f"What is the shape of the {words} in the green box?"
    )
    return shape_in_answer(answer)


def shape_in_answer(answer: str) -> str | None:
    """Return the word of `records.SHAPES` that an answer names first ("It is triangular." -> triangle), or None."""
    for word in "".join(c if c.isalpha() else " " for c in answer.lower()).split():
        for shape, names in _ANSWERS.items():
            if word in names:
                return shape
    return None


def _answer(model_path: str, picture: Any, question: str) -> str:
    """Return the model's answer: its most probable class, or the text that it writes."""
    import torch

    model, processor = _load_model(model_path)
    inputs = processor(images=picture, text=question, return_tensors="pt")
    with torch.inference_mode():
        if model.can_generate():
            return processor.batch_decode(model.generate(**inputs, max_new_tokens=10), skip_special_tokens=True)[0]
        return model.config.id2label[int(model(**inputs).logits.argmax(-1))]


_MODELS: dict[str, tuple[Any, Any]] = {}


def _load_model(model_path: str) -> tuple[Any, Any]:
    """Load model and processor from a folder, once."""
    if model_path not in _MODELS:
        from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor

        options = {
            "local_files_only": True,
            "trust_remote_code": False,
        }  # code in the folder is not run, and the user is not asked about it
        try:
            model = AutoModelForVisualQuestionAnswering.from_pretrained(model_path, **options).eval()
            processor = AutoProcessor.from_pretrained(model_path, **options)
        except (OSError, ValueError, ImportError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"attributes.py: {model_path} is no visual question answering model of transformers: {reason}"
            ) from error
        _MODELS[model_path] = (model, processor)
    return _MODELS[model_path]


def _boxed_picture(image: NDArray[np.float64], mask: NDArray[np.bool_]) -> Any:
    """Draw an RGB picture with a green box around the mask."""
    from PIL import Image, ImageDraw

    grey = (image - image.min()) / max(float(np.ptp(image)), 1e-9) * 255
    picture = Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    rows, columns = np.nonzero(mask)
    box = (int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max()))
    ImageDraw.Draw(picture).rectangle(box, outline=(0, 255, 0), width=max(1, min(image.shape) // 150))
    return picture


def _largest_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the largest connected part (8 neighbours) of a mask."""
    from scipy.ndimage import label

    parts, num_parts = label(mask, structure=np.ones((3, 3), dtype=int))
    if num_parts <= 1:
        return mask
    return parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])


def _hull_mm(mask: NDArray[np.bool_], spacing_mm: tuple[float, float]) -> NDArray[np.float64]:
    """Compute the convex hull (N, 2) of the corners of all pixels, in mm, counter-clockwise."""
    from scipy.spatial import ConvexHull

    rows = np.flatnonzero(mask.any(axis=1))
    first = mask[rows].argmax(axis=1)  # only the ends of each row can be corners of the hull
    last = mask.shape[1] - mask[rows, ::-1].argmax(axis=1)
    corners = [(rows + dr, columns) for dr in (0, 1) for columns in (first, last)]
    points = np.concatenate([np.stack(corner, axis=1) for corner in corners]).astype(np.float64) * spacing_mm
    return points[ConvexHull(points).vertices]


def _grid_over(hull: NDArray[np.float64], num_points: int = 80) -> NDArray[np.float64]:
    """Make the points (M, 2) of a regular grid that reaches 0.3 of the hull's size beyond it, as scaled triangles stick out."""
    low, high = hull.min(axis=0), hull.max(axis=0)
    margin = 0.3 * (high - low)
    axes = [np.linspace(low[i] - margin[i], high[i] + margin[i], num_points) for i in (0, 1)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)


def _inside_convex(points: NDArray[np.float64], polygon: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which points (M, 2) are in a convex counter-clockwise polygon (N, 2)."""
    edges = np.roll(polygon, -1, axis=0) - polygon
    inward = np.stack([-edges[:, 1], edges[:, 0]])  # (2, N)
    return (points @ inward >= (polygon.T * inward).sum(axis=0)).all(axis=1)


def _inside_ellipse(points: NDArray[np.float64], inside: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], float]:
    """Return which points are in the ellipse with the area and second moments of the points inside, and its elongation."""
    offset = points - points[inside].mean(axis=0)
    covariance = np.cov(offset[inside].T, bias=True)
    distance = np.einsum("mi,ij,mj->m", offset, np.linalg.inv(covariance), offset)
    num_inside = int(inside.sum())
    limit = np.partition(distance, num_inside - 1)[num_inside - 1]  # equal area
    variances = np.linalg.eigvalsh(covariance)
    return distance <= limit, float(np.sqrt(variances[1] / variances[0]))


def _smallest_rectangle(hull: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Find the smallest enclosing rectangle (4, 2), counter-clockwise, with a side on a hull edge, and its elongation."""
    best_area, best = np.inf, (np.zeros((4, 2)), 1.0)
    for edge in np.roll(hull, -1, axis=0) - hull:
        along = edge / np.linalg.norm(edge)
        frame = np.stack([along, [-along[1], along[0]]])  # (2, 2): rows are the axes
        low, high = (hull @ frame.T).min(axis=0), (hull @ frame.T).max(axis=0)
        sides = high - low
        if sides.prod() < best_area:
            corners = np.array([[low[0], low[1]], [high[0], low[1]], [high[0], high[1]], [low[0], high[1]]])
            best_area, best = float(sides.prod()), (corners @ frame, float(sides.max() / sides.min()))
    return best


def _largest_triangle(hull: NDArray[np.float64], max_vertices: int = 24) -> NDArray[np.float64]:
    """Find the largest triangle (3, 2) between vertices of the hull, counter-clockwise.

    If the hull has more than `max_vertices`, only the farthest vertex in each of that many directions is used: corners stay.
    """
    if len(hull) > max_vertices:
        angles = np.linspace(0, 2 * np.pi, max_vertices, endpoint=False)
        farthest = (hull @ np.stack([np.cos(angles), np.sin(angles)])).argmax(axis=0)
        hull = hull[np.unique(farthest)]
    i, j, k = np.ogrid[: len(hull), : len(hull), : len(hull)]
    a, b, c = hull[i], hull[j], hull[k]  # broadcast to (N, N, N, 2)
    cross = (b - a)[..., 0] * (c - a)[..., 1] - (b - a)[..., 1] * (c - a)[..., 0]
    return hull[list(np.unravel_index(cross.argmax(), cross.shape))]


def _polygon_area(polygon: NDArray[np.float64]) -> float:
    """Compute the area of a counter-clockwise polygon (N, 2)."""
    following = np.roll(polygon, -1, axis=0)
    return float((polygon[:, 0] * following[:, 1] - polygon[:, 1] * following[:, 0]).sum() / 2)


def _scaled_to_area(polygon: NDArray[np.float64], area: float) -> NDArray[np.float64]:
    """Scale a polygon about its centre to an area."""
    centre = polygon.mean(axis=0)
    return centre + (polygon - centre) * np.sqrt(area / _polygon_area(polygon))


def _intersection_over_union(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Compute |a and b| / |a or b|."""
    return float((a & b).sum() / (a | b).sum())
