"""Measure the speckle of B-mode images, which distinguishes an ultrasound image from a smooth drawing.

Fully developed speckle has a Rayleigh envelope: its mean over its standard deviation (SNR) is sqrt(pi / (4 - pi)) = 1.913 and its
Nakagami shape m is 1. Displayed images are log-compressed by a dynamic range that is seldom known, so the numbers mean little by
themselves: compare synthetic with real images that were treated alike. H, W: rows (axial) and columns (lateral) of an image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

RAYLEIGH_SNR = float(np.sqrt(np.pi / (4 - np.pi)))
"""SNR of fully developed speckle (Burckhardt 1978)."""
SPECKLE_STATISTICS = ("snr", "nakagami_m", "axial_width_px", "lateral_width_px")
"""Keys of `speckle_statistics`."""
MIN_PIXELS = 50
"""Fewest pixels of a tissue for which its speckle is measured."""

# shares of the image's side:
_SHADING_FRACTION = 1 / 8  # standard deviation of the local mean; a smaller one would remove speckle too
_TAPER_FRACTION = 1 / 8  # width of the window's soft edge
_MAX_LAG_FRACTION = 1 / 8  # largest lag of the autocorrelation


def envelope_of_grey(grey: NDArray[Any], dynamic_range_db: float = 60.0) -> NDArray[np.float64]:
    """Undo the log compression: grey levels are taken as linear in decibel, with white at 0 dB.

    Args:
        grey: 0..255, any shape; 0 is taken as the bottom of the range, though the signal may be below it.
        dynamic_range_db: range from black to white.
    Returns:
        amplitude of the envelope, 1 at white.
    """
    if not dynamic_range_db > 0:
        raise ValueError(f"speckle.py: dynamic_range_db is {dynamic_range_db}; expected decibels above 0, such as 60")
    return 10 ** ((np.asarray(grey, dtype=np.float64) / 255 - 1) * dynamic_range_db / 20)


def envelope_snr(amplitude: NDArray[Any]) -> float:
    """Return the mean over the standard deviation of the envelope; infinite for a constant."""
    std = float(np.std(amplitude))
    return float(np.mean(amplitude)) / std if std > 0 else float("inf")


def nakagami_m(amplitude: NDArray[Any]) -> float:
    """Return the Nakagami shape by moments: E[R^2]^2 / Var[R^2] (Shankar 2000); infinite for a constant.

    1: fully developed speckle; above: smoother, or with a regular component; below: few scatterers.
    """
    power = np.square(np.asarray(amplitude, dtype=np.float64))
    variance = float(np.var(power))
    return float(np.mean(power)) ** 2 / variance if variance > 0 else float("inf")


def without_shading(amplitude: NDArray[Any], mask: NDArray[np.bool_], sigma_px: float) -> NDArray[np.float64]:
    """Divide the amplitude by its Gaussian local mean within the mask, which removes gain and attenuation but not speckle; 0 outside.

    Args:
        amplitude: (H, W), positive.
        mask: (H, W); pixels outside do not count in the mean.
        sigma_px: standard deviation of the mean's weights.
    """
    inside = mask.astype(np.float64)
    weight = ndimage.gaussian_filter(inside, sigma_px, mode="constant")
    total = ndimage.gaussian_filter(np.where(mask, amplitude, 0.0), sigma_px, mode="constant")
    return np.divide(amplitude * weight, total, out=np.zeros(mask.shape), where=mask & (total > 0))


def autocorrelation_width(image: NDArray[Any], mask: NDArray[np.bool_], axis: int, max_lag: int) -> float:
    """Return the full width at half maximum of the autocorrelation along one axis, for the pixels in a mask.

    r(k) = mean over pairs k apart, both in the mask, of (x - mean)(y - mean); the width is twice the lag at which r falls below
    r(0) / 2, linearly between whole lags.

    Args:
        image: (H, W).
        mask: (H, W), some pixels True.
        axis: 0 axial (down the rows), 1 lateral.
        max_lag: largest lag, in pixels.
    Returns:
        width in pixels; 2 * max_lag if the correlation stays higher, NaN for a constant image or a mask without neighbours.
    """
    x = np.moveaxis(np.where(mask, image - image[mask].mean(), 0.0), axis, 0)
    inside = np.moveaxis(mask, axis, 0)
    half = float(np.sum(x * x)) / float(inside.sum()) / 2
    if not half > 0:
        return float("nan")
    before = 2 * half
    for lag in range(1, min(max_lag, len(x) - 1) + 1):
        num_pairs = int(np.sum(inside[lag:] & inside[:-lag]))
        if not num_pairs:
            return float("nan")
        now = float(np.sum(x[lag:] * x[:-lag])) / num_pairs
        if now < half:
            return 2 * (lag - 1 + (before - half) / (before - now))
        before = now
    return 2.0 * max_lag


def speckle_statistics(
    grey: NDArray[Any], mask: NDArray[np.bool_], dynamic_range_db: float = 60.0
) -> dict[str, float] | None:
    """Return statistics of the envelope in one tissue, after dividing out its shading.

    Args:
        grey: (H, W), 0..255.
        mask: (H, W), the tissue.
        dynamic_range_db: as in `envelope_of_grey`.
    Returns:
        `SPECKLE_STATISTICS`: SNR, Nakagami m, autocorrelation width (full width at half maximum) down and across, in pixels. None
        for fewer than `MIN_PIXELS` pixels, or without any variation.
    """
    if int(mask.sum()) < MIN_PIXELS:
        return None
    side = max(grey.shape)
    amplitude = without_shading(envelope_of_grey(grey, dynamic_range_db), mask, side * _SHADING_FRACTION)
    values = amplitude[mask]
    if not np.std(values) > 1e-9:
        return None
    max_lag = max(2, round(side * _MAX_LAG_FRACTION))
    numbers = (
        envelope_snr(values),
        nakagami_m(values),
        autocorrelation_width(amplitude, mask, 0, max_lag),
        autocorrelation_width(amplitude, mask, 1, max_lag),
    )
    return dict(zip(SPECKLE_STATISTICS, numbers))


def soft_window(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return a window that causes no edge rings in a spectrum: 1 deep inside the mask, 0 outside.

    It falls as a squared sine over an eighth of the image's side.
    """
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    return np.sin(np.pi / 2 * np.clip(depth / (max(mask.shape) * _TAPER_FRACTION), 0, 1)) ** 2


def radial_power_spectrum(image: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the mean power at each radial frequency of the image, seen through a soft window of the mask.

    P(k) = mean of |FFT(w (x - mean_w(x)))|^2 / sum(w^2) over the frequencies whose radius rounds to k cycles per side. White noise of
    variance v has P = v at every k, whatever the mask.

    Args:
        image: (N, N), any unit.
        mask: (N, N), where the image is valid.
    Returns:
        (N // 2,), for k = 1 ... N // 2, in the image's unit squared.
    Raises:
        ValueError: if the image is not square or the mask is empty.
    """
    if image.ndim != 2 or image.shape[0] != image.shape[1] or image.shape != mask.shape:
        raise ValueError(f"speckle.py: expected a square image and its mask, got {image.shape} and {mask.shape}")
    window = soft_window(mask)
    if not window.any():
        raise ValueError("speckle.py: the mask is empty; a spectrum needs pixels")
    mean = np.sum(window * image) / np.sum(window)
    power = np.abs(np.fft.fft2(window * (image - mean))) ** 2 / np.sum(window**2)
    frequency = np.fft.fftfreq(len(image), 1 / len(image))
    radius = np.rint(np.hypot(frequency[:, None], frequency[None])).astype(int).ravel()
    num_bins = len(image) // 2 + 1
    totals = np.bincount(radius, weights=power.ravel())[1:num_bins]
    return totals / np.bincount(radius)[1:num_bins]


def spectral_distance_db(spectrum: NDArray[Any], reference: NDArray[Any]) -> float:
    """Return the log-spectral distance, in decibel: root mean square over the frequencies of 10 log10(spectrum / reference)."""
    return float(np.sqrt(np.mean(_ratio_db(spectrum, reference) ** 2)))


def high_frequency_db(spectrum: NDArray[Any], reference: NDArray[Any]) -> float:
    """Return the power in the upper third of the frequencies relative to a reference, in decibel; below 0, texture is missing."""
    first = len(spectrum) * 2 // 3
    return float(np.mean(_ratio_db(spectrum, reference)[first:]))


def _ratio_db(spectrum: NDArray[Any], reference: NDArray[Any]) -> NDArray[np.float64]:
    """Return the ratio of two spectra in decibel; an empty bin counts as the smallest number, not as minus infinity."""
    if np.shape(spectrum) != np.shape(reference):
        raise ValueError(f"speckle.py: spectra differ in length: {np.shape(spectrum)} and {np.shape(reference)}")
    tiny = np.finfo(np.float64).tiny
    return 10 * (np.log10(np.maximum(spectrum, tiny)) - np.log10(np.maximum(reference, tiny)))
