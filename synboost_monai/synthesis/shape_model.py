"""Model the shapes of label maps: the point distribution model of Cootes et al. 1995, one for all views and phases.

A label map becomes `NUM_LANDMARKS` points (see `heart.landmarks`). Pose and shape are modelled separately:

    points = origin + R(angle) exp(log_size) decode(mean + sum_c x_c B_c + sum_k b_k P_k)

The origin is the tip of the ultrasound sector, so a pose gives the heart's position in the sector. Ventricles are aligned by
similarity (generalised Procrustes analysis; the atrium follows). The covariates x are the view, the phase and the size; the
residuals are decomposed into modes P_k, b_k ~ N(0, lambda_k), up to `explained_variance`. One decomposition serves all classes:
end-diastole and end-systole then have their own means and share the modes, which a few hundred label maps determine better
than four times a quarter of them.

A ventricle's landmarks are used unchanged. The left atrium, whose size and direction vary far more, is described by its axis
(middle of its ends, logarithm of length, direction), the logarithm of its width and its outline in units of both, weighted to
distances on the outline: with plain points a small atrium would get the dents and spikes of a large one's variation.

Many images end within the left atrium, mostly those of large hearts. Their ventricles are still used: the ventricle's
distribution comes from all cases and the atrium's, given the ventricle, from those that show it whole; together they are the
maximum likelihood estimate for normal data with a missing part (Anderson, JASA 52, 1957). A sampled atrium is whole,
and is cut off at the sector's border if the sector is too small for it.

T. F. Cootes, C. J. Taylor, D. H. Cooper, J. Graham, "Active shape models - their training and application", CVIU 61(1), 1995.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import ndimage

from synboost_monai.files import atomic_path
from synboost_monai.heart.landmarks import (
    ATRIUM,
    HALF_ATRIUM,
    NUM_LANDMARKS,
    VENTRICLE,
    LandmarkError,
    draw_landmarks,
    find_landmarks,
)
from synboost_monai.structures import LEFT_ATRIUM
from synboost_monai.synthesis.options import EXPLAINED_VARIANCE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Points = NDArray[np.float64]

_BORDER_PX = 2
"""Distance from the border of image or sector up to which a landmark counts as lying on it."""
_MAX_CUT_LANDMARKS = 2
"""Largest number of landmarks on the border; with more, the border is what ends the structure."""
MIN_CASES = 5
"""Smallest number of label maps that a distribution can be estimated from."""
MIN_CASES_FOR_SLOPE = 30
"""Number of cases from which shape depends on size, and pose on the depth of the image; with fewer, a slope would be chance."""
MAX_SIGMA = 3.0
"""Largest coefficient that is drawn, in standard deviations (Cootes et al. 1995)."""


# ---- the place of a heart


@dataclass(frozen=True)
class Frame:
    """Hold a pixel grid with its ultrasound sector, of a real image."""

    shape: tuple[int, int]
    """(H, W)."""
    spacing_mm: tuple[float, float]
    """(row, column)."""
    spans: NDArray[np.int32]
    """First and last column of the sector in each row, (H, 2); last < first where there is none."""
    view: str | None = None
    phase: str | None = None

    @classmethod
    def of_sector(
        cls, sector: NDArray[Any], spacing_mm: Sequence[float], view: str | None = None, phase: str | None = None
    ) -> Frame:
        """Return the frame of a sector's mask (H, W), whose rows are filled from the first to the last pixel.

        Raises:
            ValueError: if the sector is empty.
        """
        inside = np.asarray(sector) != 0
        if not inside.any():
            raise ValueError("shape_model.py: the sector is empty; expected 1 inside the ultrasound sector")
        width = inside.shape[1]
        first, last = inside.argmax(axis=1), width - 1 - inside[:, ::-1].argmax(axis=1)
        is_empty = ~inside.any(axis=1)
        spans = np.stack([np.where(is_empty, 0, first), np.where(is_empty, -1, last)], 1).astype(np.int32)
        return cls((inside.shape[0], width), (float(spacing_mm[0]), float(spacing_mm[1])), spans, view, phase)

    @cached_property
    def sector(self) -> NDArray[np.bool_]:
        """Return a mask that is True inside the sector, (H, W)."""
        columns = np.arange(self.shape[1])
        return (columns >= self.spans[:, :1]) & (columns <= self.spans[:, 1:])

    @cached_property
    def origin_mm(self) -> Points:
        """Return the tip of the sector, (x, y) from the first pixel's centre: its first row, on the middle line of its upper half."""
        rows = np.flatnonzero(self.spans[:, 1] >= self.spans[:, 0])
        upper = rows[: max(1, len(rows) // 2)]
        column = float(np.median(self.spans[upper].mean(axis=1)))
        return np.array([column * self.spacing_mm[1], rows[0] * self.spacing_mm[0]])

    @cached_property
    def depth_mm(self) -> float:
        """Return the distance from the tip to the lowest row of the sector."""
        rows = np.flatnonzero(self.spans[:, 1] >= self.spans[:, 0])
        return float((rows[-1] - rows[0] + 1) * self.spacing_mm[0])


@dataclass(frozen=True)
class HeartCase:
    """Hold the landmarks of one label map, in its frame."""

    name: str
    points: Points
    """(NUM_LANDMARKS, 2), (x, y) in mm from the frame's origin."""
    frame: Frame
    is_cut: bool
    """Whether the left atrium ends at the border of the image or sector, so that its true roof is not visible."""


def read_case(name: str, label_map: NDArray[Any], frame: Frame) -> HeartCase:
    """Return the case of a label map.

    Raises:
        LandmarkError: as `find_landmarks`; or if the image or sector cuts off the ventricle.
    """
    points = find_landmarks(label_map, frame.spacing_mm)
    border = np.array([[0.0, 0.0], [frame.shape[1] - 1, frame.shape[0] - 1]]) * frame.spacing_mm[::-1]
    at_border = np.minimum(points - border[0], border[1] - points).min(axis=1) < _BORDER_PX * max(frame.spacing_mm)
    if at_border[VENTRICLE].sum() > _MAX_CUT_LANDMARKS:
        raise LandmarkError("the image's border cuts off the ventricle")
    row, column = np.rint(points[ATRIUM] / frame.spacing_mm[::-1]).astype(int)[:, ::-1].T
    eroded = ndimage.binary_erosion(frame.sector, iterations=_BORDER_PX)
    is_beyond = ~eroded[np.clip(row, 0, frame.shape[0] - 1), np.clip(column, 0, frame.shape[1] - 1)]
    return HeartCase(name, points - frame.origin_mm, frame, bool(is_beyond.sum() > _MAX_CUT_LANDMARKS))


def whole_cases(cases: Sequence[HeartCase]) -> NDArray[np.int64]:
    """Return the indices of the cases that show the left atrium whole; of all cases if these are fewer than `MIN_CASES`."""
    whole = np.flatnonzero([not case.is_cut for case in cases])
    return whole if len(whole) >= MIN_CASES else np.arange(len(cases))


def draw_in_frame(points: Points, frame: Frame) -> NDArray[np.uint8]:
    """Draw landmarks (mm from the origin) as a label map (H, W) in a frame; the atrium ends with the sector, as experts draw it."""
    label_map = draw_landmarks(points + frame.origin_mm, frame.shape, frame.spacing_mm)
    label_map[(label_map == LEFT_ATRIUM.class_index) & ~frame.sector] = 0
    return label_map


# ---- the model


class Pose(NamedTuple):
    """Hold size, direction and place of a ventricle."""

    log_size: float
    """Logarithm of the root mean square distance (mm) of the ventricle's landmarks from their middle."""
    angle: float
    """Radians, turning right to down."""
    x_mm: float
    y_mm: float
    """Coordinates of the middle of the ventricle's landmarks, from the frame's origin."""

    def place(self, shape: Points) -> Points:
        """Convert aligned landmarks (NUM_LANDMARKS, 2) to mm from the frame's origin."""
        turn = np.exp(self.log_size + 1j * self.angle)
        return _plane(turn * _complex(shape) + self.x_mm + 1j * self.y_mm)

    def unplace(self, points: Points) -> Points:
        """Apply the inverse of `place`."""
        turn = np.exp(self.log_size + 1j * self.angle)
        return _plane((_complex(points) - self.x_mm - 1j * self.y_mm) / turn)


@dataclass(frozen=True)
class ShapeSample:
    """Hold a heart drawn from the model."""

    points: Points
    """(NUM_LANDMARKS, 2), mm from the frame's origin."""
    frame_index: int
    pose: Pose
    coefficients: NDArray[np.float64]
    """b_k / sqrt(lambda_k): the coefficients in standard deviations of each mode."""


@dataclass(frozen=True)
class ShapeModel:
    """A ShapeModel holds the landmarks' point distribution model (see the module), the poses' distribution, and frames to draw in.

    It contains means, slopes, modes and variances, but no case's contour; of single cases it keeps the frame: size and spacing of the
    image, its sector, view and phase. (Interpolation differs: it averages two real cases, which it needs.)
    """

    classes: tuple[tuple[str | None, str | None], ...]
    """(view, phase) of each class, sorted."""
    atrium_scale: NDArray[np.float64]
    """(2,): mean length and width of the atrium, which weight its numbers."""
    mean: NDArray[np.float64]
    """(D,): all x, then all y, of the ventricle's aligned landmarks (root mean square radius about 1), then the atrium's numbers
    (`encode_atrium`)."""
    class_offsets: NDArray[np.float64]
    """(classes, D): offset of each class."""
    size_slope: NDArray[np.float64]
    """(D,): change with log_size."""
    mean_log_size: float
    modes: NDArray[np.float64]
    """(K, D), orthonormal."""
    eigenvalues: NDArray[np.float64]
    """(K,), decreasing."""
    pose_mean: NDArray[np.float64]
    """(4,): log_size, angle, x, y at the mean depth."""
    pose_class_offsets: NDArray[np.float64]
    """(classes, 4): offset of each class."""
    pose_depth_slope: NDArray[np.float64]
    """(4,): change with the logarithm of the frame's depth."""
    mean_log_depth: float
    pose_covariance: NDArray[np.float64]
    """(4, 4): covariance of the residuals."""
    frames: tuple[Frame, ...]
    provenance: dict[str, Any]
    """num_cases, num_whole_atria, explained_variance, and the caller's entries (hash of the data)."""

    @classmethod
    def fit(
        cls,
        cases: Sequence[HeartCase],
        *,
        explained_variance: float = EXPLAINED_VARIANCE,
        provenance: Mapping[str, Any] | None = None,
    ) -> ShapeModel:
        """Fit the model to label maps.

        If fewer than `MIN_CASES` cases show the left atrium whole, atria that are cut off are used unchanged.

        Args:
            cases: results of `read_case`.
            explained_variance: share of the variance that the modes keep, in (0, 1].
            provenance: entries to keep with the model; JSON.
        Raises:
            ValueError: if there are fewer than `MIN_CASES` cases.
        """
        if len(cases) < MIN_CASES:
            raise ValueError(
                f"shape_model.py: {len(cases)} usable label maps; a shape model needs at least {MIN_CASES}"
            )
        if not 0 < explained_variance <= 1:
            raise ValueError(f"shape_model.py: explained_variance is {explained_variance}; expected above 0, at most 1")
        whole = whole_cases(cases)
        shapes, poses = align(np.stack([case.points for case in cases]))
        classes = tuple(sorted({(c.frame.view, c.frame.phase) for c in cases}, key=lambda c: (c[0] or "", c[1] or "")))
        class_index = np.array([classes.index((case.frame.view, case.frame.phase)) for case in cases])
        log_size = np.array([pose.log_size for pose in poses])
        log_depth = np.log([case.frame.depth_mm for case in cases])

        mean_log_size, mean_log_depth = float(log_size.mean()), float(log_depth.mean())
        size = log_size - mean_log_size
        ventricle = np.concatenate([shapes[:, VENTRICLE, 0], shapes[:, VENTRICLE, 1]], axis=1)
        length, width, _ = _atrium_axes(shapes[whole][:, ATRIUM])
        atrium_scale = np.array([length.mean(), width.mean()])
        atrium = encode_atrium(shapes[:, ATRIUM], atrium_scale)
        of_ventricle = _regress(ventricle, class_index, len(classes), size)
        modes, eigenvalues = _components(of_ventricle.rest)
        scores = of_ventricle.rest @ modes.T
        # the atrium: what follows from the ventricle's scores, then class and size, then its own modes
        on_scores = _slopes(_regress(atrium[whole], class_index[whole], len(classes), size[whole]).rest, scores[whole])
        of_atrium = _regress(atrium[whole] - scores[whole] @ on_scores, class_index[whole], len(classes), size[whole])
        own_modes, own_eigenvalues = _components(of_atrium.rest)
        factors = np.block(
            [
                [np.sqrt(eigenvalues)[:, None] * modes, np.sqrt(eigenvalues)[:, None] * on_scores],
                [np.zeros((len(own_modes), modes.shape[1])), np.sqrt(own_eigenvalues)[:, None] * own_modes],
            ]
        )  # (K, D): covariance = factors^T factors
        _, singular, modes = np.linalg.svd(factors, full_matrices=False)
        kept = singular[singular**2 > _NO_VARIANCE] ** 2
        num_modes = int((np.cumsum(kept) < explained_variance * kept.sum()).sum()) + 1 if len(kept) else 0

        of_pose = _regress(np.array(poses), class_index, len(classes), log_depth - mean_log_depth)
        facts = {
            "num_cases": len(cases),
            "num_whole_atria": len(whole),
            "explained_variance": explained_variance,
            **(provenance or {}),
        }
        return cls(
            classes=classes,
            atrium_scale=atrium_scale,
            mean=np.concatenate([of_ventricle.mean, of_atrium.mean]),
            class_offsets=np.concatenate([of_ventricle.offsets, of_atrium.offsets], axis=1),
            size_slope=np.concatenate([of_ventricle.slope, of_atrium.slope]),
            mean_log_size=mean_log_size,
            modes=modes[:num_modes],
            eigenvalues=singular[:num_modes] ** 2,
            pose_mean=of_pose.mean,
            pose_class_offsets=of_pose.offsets,
            pose_depth_slope=of_pose.slope,
            mean_log_depth=mean_log_depth,
            pose_covariance=np.cov(of_pose.rest.T),
            frames=tuple(case.frame for case in cases),
            provenance=facts,
        )

    def sample(self, generator: np.random.Generator, variance_scale: float = 1.0) -> ShapeSample:
        """Draw a frame, a pose for its depth, and a shape for its class and the pose's size.

        Args:
            generator: source of all randomness.
            variance_scale: factor on the modes' variances; 0: the mean shape of class and size.
        """
        frame_index = int(generator.integers(len(self.frames)))
        frame = self.frames[frame_index]
        class_index = self.classes.index((frame.view, frame.phase))
        expected = (
            self.pose_mean
            + self.pose_class_offsets[class_index]
            + self.pose_depth_slope * (np.log(frame.depth_mm) - self.mean_log_depth)
        )
        variances, axes = np.linalg.eigh(self.pose_covariance)
        drawn = axes @ (np.sqrt(np.maximum(variances, 0)) * _truncated_normal(generator, len(variances)))
        pose = Pose(*(float(number) for number in expected + drawn))
        coefficients = np.sqrt(variance_scale) * _truncated_normal(generator, len(self.eigenvalues))
        shape = self.shape(coefficients, class_index, pose.log_size)
        return ShapeSample(pose.place(shape), frame_index, pose, coefficients)

    def shape(
        self, coefficients: NDArray[np.float64], class_index: int = 0, log_size: float | None = None
    ) -> NDArray[np.float64]:
        """Return the aligned landmarks (NUM_LANDMARKS, 2) for mode coefficients in standard deviations.

        Args:
            coefficients: (K,) or fewer: those of the first modes.
            class_index: index into `classes`.
            log_size: logarithm of the size; None: the mean.
        """
        size = 0.0 if log_size is None else log_size - self.mean_log_size
        scaled = coefficients * np.sqrt(self.eigenvalues[: len(coefficients)])
        numbers = (
            self.mean + self.class_offsets[class_index] + self.size_slope * size + scaled @ self.modes[: len(scaled)]
        )
        return self._decode(numbers)

    def _decode(self, numbers: NDArray[np.float64]) -> Points:
        """Convert numbers (D,) to aligned landmarks."""
        ventricle = np.stack(np.split(numbers[: 2 * VENTRICLE.stop], 2), 1)
        return np.concatenate([ventricle, decode_atrium(numbers[2 * VENTRICLE.stop :], self.atrium_scale)])

    def distance_mm(self, points: Points, pose: Pose, kind: tuple[str | None, str | None]) -> float:
        """Return the mean distance of a heart's landmarks (mm) from the nearest heart that the modes can form.

        Args:
            points: (NUM_LANDMARKS, 2).
            pose: result of `pose_in`.
            kind: (view, phase); if the model has no such class, the mean of all is used.
        """
        shape = pose.unplace(points)
        offset = self.class_offsets[self.classes.index(kind)] if kind in self.classes else 0.0
        expected = self.mean + offset + self.size_slope * (pose.log_size - self.mean_log_size)
        atrium = encode_atrium(shape[None, ATRIUM], self.atrium_scale)[0]
        rest = np.concatenate([shape[VENTRICLE].T.ravel(), atrium]) - expected
        nearest = self._decode(expected + (rest @ self.modes.T) @ self.modes)
        return float(np.exp(pose.log_size) * np.linalg.norm(shape - nearest, axis=1).mean())

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the model as one .npz without pickles, whole or not at all."""
        facts = {
            "format": _FORMAT,
            "classes": self.classes,
            "mean_log_size": self.mean_log_size,
            "mean_log_depth": self.mean_log_depth,
            "provenance": self.provenance,
        }
        path = Path(path)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                facts=np.array(json.dumps(facts)),
                frame_shapes=np.array([frame.shape for frame in self.frames], np.int32),
                frame_spacings_mm=np.array([frame.spacing_mm for frame in self.frames]),
                frame_classes=np.array([self.classes.index((f.view, f.phase)) for f in self.frames], np.int32),
                frame_spans=np.concatenate([frame.spans for frame in self.frames]),
                **{name: getattr(self, name) for name in _ARRAYS},
            )
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ShapeModel:
        """Read a saved model.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is not a shape model with this version's landmarks.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such shape model; synboost label-maps writes one")
        try:
            _check_size(path)
            with np.load(path, allow_pickle=False) as content:
                arrays = {name: content[name] for name in content.files}
            facts = json.loads(str(arrays["facts"]))
            is_ours = facts["format"] == _FORMAT and arrays["mean"].shape == (_NUM_NUMBERS,)
        except Exception as error:  # numpy raises many kinds of errors for a file that is not an archive
            reason = "it holds code" if "pickle" in str(error) else (str(error).splitlines() or ["damaged"])[0]
            raise ValueError(f"{path}: not a shape model ({reason}); make it again with synboost label-maps") from None
        if not is_ours:
            raise ValueError(f"{path}: a shape model of other landmarks; make it again with synboost label-maps")
        classes = tuple((view, phase) for view, phase in facts["classes"])
        ends = np.cumsum(arrays["frame_shapes"][:, 0])[:-1]
        frames = tuple(
            Frame((int(shape[0]), int(shape[1])), (float(spacing[0]), float(spacing[1])), spans, *classes[class_index])
            for shape, spacing, class_index, spans in zip(
                arrays["frame_shapes"],
                arrays["frame_spacings_mm"],
                arrays["frame_classes"],
                np.split(arrays["frame_spans"], ends),
            )
        )
        return cls(
            classes=classes,
            mean_log_size=facts["mean_log_size"],
            mean_log_depth=facts["mean_log_depth"],
            frames=frames,
            provenance=facts["provenance"],
            **{name: arrays[name] for name in _ARRAYS},
        )


def _check_size(path: Path) -> None:
    """Refuse an archive that is larger than any shape model when unpacked."""
    with zipfile.ZipFile(path) as archive:
        num_bytes = sum(entry.file_size for entry in archive.infolist())
    if num_bytes > _MAX_BYTES:
        raise ValueError(f"it unpacks to {num_bytes:,} bytes, and no shape model has more than {_MAX_BYTES:,}")


_MAX_BYTES = 1_000_000_000
"""Largest unpacked size; the sectors of ten thousand label maps of 1,000 rows need less than a tenth of it."""
_NO_VARIANCE = 1e-12
"""Largest variance that counts as rounding error; the ventricle's radius is 1."""
_MIN_AXIS = 1e-3
"""Smallest length and width of an atrium, in units of the ventricle's radius (0.03 mm), as their logarithms are taken."""
_FORMAT = 1
_NUM_NUMBERS = 2 * NUM_LANDMARKS + 5
"""D: coordinates of all landmarks, and the atrium's axis (four numbers) and width."""
_ARRAYS = (
    "atrium_scale",
    "mean",
    "class_offsets",
    "size_slope",
    "modes",
    "eigenvalues",
    "pose_mean",
    "pose_class_offsets",
    "pose_depth_slope",
    "pose_covariance",
)


def align(points: Points, num_rounds: int = 5) -> tuple[Points, list[Pose]]:
    """Align landmarks by generalised Procrustes analysis of the ventricle's: centred, root mean square radius 1, turned to the mean.

    Args:
        points: (n, NUM_LANDMARKS, 2), mm.
        num_rounds: rounds of turning to the mean and recomputing it; two suffice for hearts.
    Returns:
        aligned landmarks, (n, NUM_LANDMARKS, 2), and the pose of each.
    """
    plane = _complex(points)
    middle = plane[:, VENTRICLE].mean(axis=1, keepdims=True)
    size = np.sqrt((np.abs(plane[:, VENTRICLE] - middle) ** 2).mean(axis=1, keepdims=True))
    upright = (plane - middle) / size
    turn = np.ones((len(plane), 1), dtype=complex)
    for _ in range(num_rounds):
        reference = (upright / turn)[:, VENTRICLE].mean(axis=0)
        turn = (upright[:, VENTRICLE] @ reference.conj())[:, None]
        turn /= np.abs(turn)
        turn /= np.exp(1j * np.angle(turn.mean()))  # the mean keeps the cases' mean direction
    numbers = np.concatenate([np.log(size), np.angle(turn), middle.real, middle.imag], axis=1)
    return _plane(upright / turn), [Pose(*(float(number) for number in row)) for row in numbers]


def encode_atrium(points: Points, scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the atrium's numbers: middle of its ends (x, y), log length, direction, log width, outline along and across.

    Each is weighted by how far it moves the outline: a step of 1 moves the landmarks by 1 in total (root of the sum of squares).

    Args:
        points: (n, M, 2), aligned.
        scale: (2,), a typical length and width.
    Returns:
        (n, 5 + 2 M).
    """
    length, width, direction = _atrium_axes(points)
    middle = points[:, [0, -1]].mean(axis=1)
    local = _complex(points - middle[:, None]) * np.exp(-1j * direction)[:, None]
    along, across = local.real / length[:, None], local.imag / width[:, None]
    weights = np.sqrt(points.shape[1]) * np.array([1, 1, scale[0], scale[0], scale[1]])
    axes = np.stack([middle[:, 0], middle[:, 1], np.log(length), direction, np.log(width)], 1) * weights
    return np.concatenate([axes, scale[0] * along, scale[1] * across], axis=1)


def decode_atrium(numbers: NDArray[np.float64], scale: NDArray[np.float64]) -> Points:
    """Invert `encode_atrium` for one atrium: (5 + 2 M,) -> (M, 2)."""
    num_points = (len(numbers) - 5) // 2
    weights = np.sqrt(num_points) * np.array([1, 1, scale[0], scale[0], scale[1]])
    x, y, log_length, direction, log_width = numbers[:5] / weights
    along, across = np.split(numbers[5:], 2)
    local = np.exp(log_length) * along / scale[0] + 1j * np.exp(log_width) * across / scale[1]
    return _plane(np.exp(1j * direction) * local + x + 1j * y)


def _atrium_axes(points: Points) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return length (middle of the ends to the roof), root mean square distance from that axis, and direction in radians, each (n,)."""
    plane = _complex(points)
    middle = plane[:, [0, -1]].mean(axis=1)
    axis = plane[:, HALF_ATRIUM] - middle
    across = ((plane - middle[:, None]) * np.exp(-1j * np.angle(axis))[:, None]).imag
    width = np.sqrt((across**2).mean(axis=1))
    return np.maximum(np.abs(axis), _MIN_AXIS), np.maximum(width, _MIN_AXIS), np.angle(axis)


def pose_in(points: Points, mean: NDArray[np.float64]) -> Pose:
    """Return the pose of a heart by a model's mean.

    Args:
        points: (NUM_LANDMARKS, 2), mm.
        mean: mean of a `ShapeModel`.
    """
    plane = _complex(points[VENTRICLE])
    middle = plane.mean()
    size = np.sqrt((np.abs(plane - middle) ** 2).mean())
    reference = mean[: VENTRICLE.stop] + 1j * mean[VENTRICLE.stop : 2 * VENTRICLE.stop]
    angle = np.angle((plane - middle) @ reference.conj())
    return Pose(float(np.log(size)), float(angle), float(middle.real), float(middle.imag))


def generalisation_mm(
    cases: Sequence[HeartCase], groups: Sequence[str], num_folds: int = 5, **options: Any
) -> NDArray[Any]:
    """Compute how far a model is from unseen hearts: mean landmark distance, mm, of each after projection on the model's modes.

    Generalisation is meant as in R. H. Davies, "Learning shape", PhD thesis, Manchester 2002, with folds of patients instead
    of leave-one-out.

    Args:
        cases: cases of whole hearts.
        groups: patient of each case; a patient is never on both sides.
        num_folds: number of folds, at most that of groups.
        options: arguments of `ShapeModel.fit`.
    Returns:
        (n,), in the order of the folds; empty if a fold leaves too few cases.
    """
    order = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    fold = np.array([order[group] % num_folds for group in groups])
    distances = []
    for number in range(num_folds):
        seen = [case for case, f in zip(cases, fold) if f != number]
        if len(seen) < MIN_CASES:
            continue
        model = ShapeModel.fit(seen, **options)
        for case in (case for case, f in zip(cases, fold) if f == number):
            pose = pose_in(case.points, model.mean)
            distances.append(model.distance_mm(case.points, pose, (case.frame.view, case.frame.phase)))
    return np.array(distances)


def interpolate(shapes: Points, poses: Sequence[Pose], weight: float) -> Points:
    """Return a heart between two real ones: landmarks and poses are averaged separately.

    Args:
        shapes: (2, NUM_LANDMARKS, 2), aligned.
        poses: poses of both.
        weight: weight of the second heart, 0 to 1.
    Returns:
        (NUM_LANDMARKS, 2), mm from the frame's origin.
    """
    first, second = np.array(poses)
    pose = Pose(*(float(number) for number in (1 - weight) * first + weight * second))
    return pose.place((1 - weight) * shapes[0] + weight * shapes[1])


@dataclass(frozen=True)
class _Regression:
    """Hold the parts of values = mean + offsets[class] + slope * covariate + rest."""

    mean: NDArray[np.float64]
    offsets: NDArray[np.float64]
    slope: NDArray[np.float64]
    rest: NDArray[np.float64]


def _regress(
    values: NDArray[np.float64], class_index: NDArray[np.int64], num_classes: int, covariate: NDArray[np.float64]
) -> _Regression:
    """Fit least squares on class and one covariate (from `MIN_CASES_FOR_SLOPE` cases on).

    Each class gets one additional case at the overall mean, so that a class with a single case does not disclose that case.
    """
    mean = values.mean(axis=0)
    offsets = np.zeros((num_classes, values.shape[1]))
    slope = np.zeros(values.shape[1])
    rest = values - mean
    for _ in range(10):  # backfitting; class and covariate are nearly orthogonal
        for number in range(num_classes):
            of_class = class_index == number
            offsets[number] = (rest[of_class] - covariate[of_class, None] * slope).sum(axis=0) / (1 + of_class.sum())
        if len(values) >= MIN_CASES_FOR_SLOPE and covariate.std() > 1e-6:
            slope = covariate @ (rest - offsets[class_index]) / (covariate @ covariate)
    return _Regression(mean, offsets, slope, rest - offsets[class_index] - covariate[:, None] * slope)


def _components(rest: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the principal directions (K, D) of residuals (n, D), and their variances, decreasing."""
    _, singular, directions = np.linalg.svd(rest, full_matrices=False)
    variances = singular**2 / max(1, len(rest) - 1)
    count = int((variances > _NO_VARIANCE).sum())
    return directions[:count], variances[:count]


def _slopes(values: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit values (n, D) on scores (n, K) by least squares: (K, D); only leading scores, at most one per ten cases, are used."""
    slopes = np.zeros((scores.shape[1], values.shape[1]))
    count = min(scores.shape[1], len(values) // 10)
    if count:
        slopes[:count] = np.linalg.lstsq(scores[:, :count], values, rcond=None)[0]
    return slopes


def _truncated_normal(generator: np.random.Generator, size: int) -> NDArray[np.float64]:
    """Draw standard normal numbers within `MAX_SIGMA`."""
    drawn = generator.standard_normal(size)
    while (is_far := np.abs(drawn) > MAX_SIGMA).any():
        drawn[is_far] = generator.standard_normal(int(is_far.sum()))
    return drawn


def _complex(points: Points) -> NDArray[np.complex128]:
    """Convert (..., 2) to complex numbers (...), x + iy."""
    return points[..., 0] + 1j * points[..., 1]


def _plane(points: NDArray[np.complex128]) -> Points:
    """Convert complex numbers (...) to (..., 2)."""
    return np.stack([points.real, points.imag], -1)
