"""Compute distances between a set of synthetic and a set of real images, with floors that make them comparable.

Each number depends on the number of images, so it comes with a floor: the same number for equally many real images.
Features are rows, (n, F), of any network. Everything is computed in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.metrics import MultiScaleSSIMMetric
from numpy.typing import NDArray
from torch import Tensor

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the scales, finest first (Wang et al. 2003)."""
_MS_SSIM_KERNEL = 11  # pixels, as in the same paper
_MAX_ROWS = 1000  # largest kernel matrix that is held whole
_BLOCK = 256  # rows of a distance matrix that are held at a time


def frechet_distance(features: NDArray[Any], reference: NDArray[Any]) -> float:
    """Return the Fréchet distance of two Gaussians fitted to feature vectors; with Inception's features this is the FID.

    |mu_x - mu_y|^2 + tr(S_x) + tr(S_y) - 2 tr((S_x S_y)^(1/2))  (Heusel et al. 2017, eq. 6). With X, Y the centred features over
    sqrt(n - 1), the last trace is the sum of the singular values of X Y^T, an (n_x, n_y) matrix. This avoids the root of a product of
    covariances, which is singular when there are fewer images than features (MONAI's `FIDMetric` then adds to the diagonal).

    Args:
        features, reference: (n, F), at least two rows each.
    Returns:
        the distance: 0 for equal sets; it grows as n falls, so compare only values of equal n.
    Raises:
        ValueError: if the shapes do not fit.
    """
    x, y = _features(features, "features"), _features(reference, "reference")
    _check_same_width(x, y)
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    x, y = (x - mean_x) / np.sqrt(len(x) - 1), (y - mean_y) / np.sqrt(len(y) - 1)
    cross = float(np.linalg.svd(_factor(x) @ _factor(y).T, compute_uv=False).sum())
    distance = float(np.sum((mean_x - mean_y) ** 2) + np.sum(x**2) + np.sum(y**2)) - 2 * cross
    return max(distance, 0.0)  # below 0 by rounding


def median_distance(features: NDArray[Any]) -> float:
    """Return the median Euclidean distance between different rows, the usual bandwidth of a Gaussian kernel (Gretton et al. 2012).

    If there are more than a thousand rows, at most a thousand evenly spread ones are used.

    Raises:
        ValueError: if all rows are equal.
    """
    x = _features(features, "features")
    x = x[:: -(-len(x) // _MAX_ROWS)]
    upper = np.triu_indices(len(x), k=1)
    median = float(np.sqrt(np.median(_squared_distances(x, x)[upper])))
    if not median > 0:
        raise ValueError("synthesis.py: all feature vectors are equal; is the network's image encoder trained?")
    return median


def mmd_squared(features: NDArray[Any], reference: NDArray[Any], bandwidth: float) -> float:
    """Return the squared maximum mean discrepancy with the kernel exp(-|x - y|^2 / (2 bandwidth^2)), unbiased.

    Gretton et al. 2012, lemma 6, eq. 3; it is at most 2, and chance may make it negative. MONAI's `MMDMetric`
    is the same sum with a linear kernel, which only compares the means.

    Args:
        features, reference: (n, F), at least two rows each.
        bandwidth: in the features' unit; taken from real data (`median_distance`), so that values can be compared.
    """
    x, y = _features(features, "features"), _features(reference, "reference")
    _check_same_width(x, y)
    if not bandwidth > 0:
        raise ValueError(f"synthesis.py: bandwidth is {bandwidth}; expected a distance above 0")

    def total(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        """Sum the kernel over all pairs."""
        blocks = (a[i : i + _BLOCK] for i in range(0, len(a), _BLOCK))
        return float(sum(np.exp(-_squared_distances(block, b) / (2 * bandwidth**2)).sum() for block in blocks))

    within = [(total(a, a) - len(a)) / (len(a) * (len(a) - 1)) for a in (x, y)]
    return within[0] + within[1] - 2 * total(x, y) / (len(x) * len(y))


def mmd_chance_level(
    features: NDArray[Any],
    reference: NDArray[Any],
    bandwidth: float,
    seed: int,
    level: float = 0.95,
    num_permutations: int = 200,
) -> float:
    """Return a quantile of `mmd_squared` under random assignment to the sets (permutation test, Gretton et al. 2012, section 5).

    Args:
        features, reference, bandwidth: as in `mmd_squared`; of a reference with more than a thousand rows at most a thousand are used.
        seed: seed of the permutations.
        level: level of the quantile.
    """
    x, y = _features(features, "features"), _features(reference, "reference")
    _check_same_width(x, y)
    y = y[:: -(-len(y) // _MAX_ROWS)]
    pool, n, m = np.concatenate([x, y]), len(x), len(y)
    kernel = np.exp(-_squared_distances(pool, pool) / (2 * bandwidth**2))
    np.fill_diagonal(kernel, 0)
    generator = np.random.default_rng(seed)
    is_first = np.zeros((n + m, num_permutations))
    for column in is_first.T:
        column[generator.permutation(n + m)[:n]] = 1
    toward_first = kernel @ is_first
    first, cross = (is_first * toward_first).sum(axis=0), ((1 - is_first) * toward_first).sum(axis=0)
    second = kernel.sum() - first - 2 * cross
    values = first / (n * (n - 1)) + second / (m * (m - 1)) - 2 * cross / (n * m)
    return float(np.quantile(values, level))


def nearest(features: NDArray[Any], reference: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the root mean square difference of each row to the nearest row of the reference, and that row's index.

    Args:
        features: (n, F).
        reference: (m, F).
    Returns:
        distances (n,) and indices (n,).
    """
    x, y = np.asarray(features, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    _check_same_width(x, y)
    indices = np.concatenate(
        [_squared_distances(x[i : i + _BLOCK], y).argmin(axis=1) for i in range(0, len(x), _BLOCK)]
    )
    return np.sqrt(np.mean((x - y[indices]) ** 2, axis=1)), indices


def memorisation(synthetic: NDArray[Any], real: NDArray[Any]) -> dict[str, float]:
    """Measure whether synthetic images lie nearer to the training images than unseen real images do.

    Args:
        synthetic: distance of each synthetic image to its nearest training image (`nearest`).
        real: the same distance of real images that were not used for training.
    Returns:
        median_synthetic, median_real, ratio (below 1: nearer), share_nearer: the share of synthetic images nearer than the first
        percentile of the real ones, 0.01 if nothing is memorised.
    """
    medians = float(np.median(synthetic)), float(np.median(real))
    return {
        "median_synthetic": medians[0],
        "median_real": medians[1],
        "ratio": medians[0] / medians[1] if medians[1] > 0 else float("inf"),
        "share_nearer": float(np.mean(np.asarray(synthetic) < np.percentile(real, 1))),
    }


def ms_ssim(images: Tensor, others: Tensor) -> Tensor:
    """Return the multi-scale structural similarity of pairs, with as many of the five scales as fit into the images.

    Images of 176 px and more have five scales, 128 px four, 64 px three; the exponents of the used scales are scaled to sum 1. Images
    below 11 px are too small for the kernel.

    Args:
        images, others: (B, 1, H, W), in [0, 1].
    Returns:
        (B,), 1 for equal images.
    """
    side = min(images.shape[-2:])
    # the coarsest scale must hold the kernel, and MONAI's metric also has its own rule: (scales - 1)^2
    shrink = {k: max(2 ** (k - 1), (k - 1) ** 2) for k in range(1, len(MS_SSIM_WEIGHTS) + 1)}
    fits = [k for k, factor in shrink.items() if side // factor >= _MS_SSIM_KERNEL]
    if not fits:
        raise ValueError(f"synthesis.py: images are {side} px; MS-SSIM needs at least {_MS_SSIM_KERNEL}")
    weights = np.array(MS_SSIM_WEIGHTS[: max(fits)])
    metric = MultiScaleSSIMMetric(
        spatial_dims=2, data_range=1.0, kernel_size=_MS_SSIM_KERNEL, weights=tuple(weights / weights.sum())
    )
    values = metric(images.float(), others.float())
    assert isinstance(values, Tensor)
    return values.flatten()


# ---- helpers


def _features(values: NDArray[Any], what: str) -> NDArray[np.float64]:
    """Return (n, F) float64, checked."""
    array = np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values, dtype=np.float64)
    if array.ndim != 2 or len(array) < 2:
        raise ValueError(f"synthesis.py: {what} must be (n, F) of at least 2 images, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"synthesis.py: {what} hold NaN or infinity; compute them in float32 (autocast_dtype null)")
    return array


def _check_same_width(x: NDArray[Any], y: NDArray[Any]) -> None:
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"synthesis.py: feature vectors differ in length: {x.shape} and {y.shape}")


def _factor(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return R of x = QR: the same singular values of products, with F rows instead of n."""
    return np.asarray(np.linalg.qr(x, mode="r")) if len(x) > x.shape[1] else x


def _squared_distances(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (n, m) squared Euclidean distances."""
    squares = np.sum(x**2, axis=1)[:, None] + np.sum(y**2, axis=1)[None] - 2 * (x @ y.T)
    return np.maximum(squares, 0)
