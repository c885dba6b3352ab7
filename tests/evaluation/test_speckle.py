"""Test speckle statistics against simulated speckle, whose law is known."""

import numpy as np
import pytest
from scipy import ndimage

from synboost_monai.evaluation.speckle import (
    MIN_PIXELS,
    RAYLEIGH_SNR,
    SPECKLE_STATISTICS,
    autocorrelation_width,
    envelope_of_grey,
    envelope_snr,
    high_frequency_db,
    nakagami_m,
    radial_power_spectrum,
    soft_window,
    speckle_statistics,
    spectral_distance_db,
    without_shading,
)

SIDE = 128
FULL = np.ones((SIDE, SIDE), dtype=bool)


def field(seed: int, sigma_px: tuple[float, float] = (1.0, 1.6)) -> np.ndarray:
    """Make a complex echo field: white Gaussian noise through a Gaussian point-spread function (rows, columns)."""
    generator = np.random.default_rng(seed)
    parts = [ndimage.gaussian_filter(generator.standard_normal((SIDE, SIDE)), sigma_px, mode="wrap") for _ in range(2)]
    return parts[0] + 1j * parts[1]


def grey_of(amplitude: np.ndarray, dynamic_range_db: float = 60.0) -> np.ndarray:
    """Compress to 8 bits logarithmically, the brightest pixel white."""
    decibel = 20 * np.log10(amplitude / amplitude.max())
    return np.clip(255 * (1 + decibel / dynamic_range_db), 0, 255).round().astype(np.uint8)


def keep_high_frequencies(image: np.ndarray, factor: float) -> np.ndarray:
    """Return the image with the variance of its upper half of frequencies multiplied."""
    frequency = np.fft.fftfreq(SIDE)
    is_high = np.hypot(frequency[:, None], frequency[None]) > 0.1
    return np.fft.ifft2(np.fft.fft2(image) * np.where(is_high, np.sqrt(factor), 1)).real


def disc(radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    return rows**2 + columns**2 < radius**2


def test_log_compression_is_undone() -> None:
    np.testing.assert_allclose(envelope_of_grey(np.array([255, 0, 127.5]), 40.0), [1.0, 0.01, 0.1])
    with pytest.raises(ValueError, match="dynamic_range_db is 0"):
        envelope_of_grey(np.zeros(3), 0)


def test_rayleigh_envelope_has_the_snr_and_shape_of_theory() -> None:
    amplitude = np.random.default_rng(0).rayleigh(3.0, 200_000)
    assert envelope_snr(amplitude) == pytest.approx(RAYLEIGH_SNR, rel=0.01) == pytest.approx(1.913, abs=0.001)
    assert nakagami_m(amplitude) == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize("m", [0.5, 2.0])
def test_nakagami_shape_is_found(m: float) -> None:
    power = np.random.default_rng(1).gamma(m, 1 / m, 200_000)  # R^2 of a Nakagami R is Gamma(m)
    assert nakagami_m(np.sqrt(power)) == pytest.approx(m, rel=0.03)


def test_constant_has_no_speckle() -> None:
    assert envelope_snr(np.ones(9)) == float("inf") and nakagami_m(np.ones(9)) == float("inf")
    assert speckle_statistics(np.full((64, 64), 99, np.uint8), np.ones((64, 64), dtype=bool)) is None


@pytest.mark.parametrize("dynamic_range_db", [50.0, 70.0])
def test_log_compressed_8_bit_speckle_still_shows_the_law(dynamic_range_db: float) -> None:
    found = [
        speckle_statistics(grey_of(np.abs(field(seed)), dynamic_range_db), disc(55), dynamic_range_db)
        for seed in range(6)
    ]
    assert np.mean([f["snr"] for f in found]) == pytest.approx(RAYLEIGH_SNR, abs=0.04)
    assert np.mean([f["nakagami_m"] for f in found]) == pytest.approx(1.0, abs=0.07)
    # the envelope's correlation is nearly the square of the field's, exp(-k^2 / 4 sigma^2): width 2 sigma sqrt(2 ln 2)
    assert np.mean([f["axial_width_px"] for f in found]) == pytest.approx(2 * 1.0 * np.sqrt(2 * np.log(2)), rel=0.12)
    assert np.mean([f["lateral_width_px"] for f in found]) == pytest.approx(2 * 1.6 * np.sqrt(2 * np.log(2)), rel=0.12)


def test_missing_high_frequencies_raise_m_and_the_spectral_distance() -> None:
    """The measures rise with the missing share, which is the failure of a poor step grid."""
    images = [np.abs(field(seed, (0.6, 0.9))) for seed in range(12)]
    reference = np.mean([radial_power_spectrum(image, FULL) for image in images[6:]], axis=0)
    m, distance, high = [], [], []
    for factor in (1.0, 0.82, 0.5, 0.1):
        filtered = [np.maximum(keep_high_frequencies(image, factor), 1e-3) for image in images[:6]]
        spectrum = np.mean([radial_power_spectrum(image, FULL) for image in filtered], axis=0)
        m.append(np.mean([speckle_statistics(grey_of(image), FULL)["nakagami_m"] for image in filtered]))
        distance.append(spectral_distance_db(spectrum, reference))
        high.append(high_frequency_db(spectrum, reference))
    assert m[0] == pytest.approx(1.0, abs=0.07) and m == sorted(m) and m[-1] > 1.5
    assert distance[0] < 0.5 and distance == sorted(distance) and distance[-1] > 7
    np.testing.assert_allclose(high, 10 * np.log10([1, 0.82, 0.5, 0.1]), atol=0.3)


def test_shading_is_divided_out() -> None:
    amplitude = np.abs(field(3))
    shaded = amplitude * np.exp(np.linspace(0, 3, SIDE))[:, None]
    plain = without_shading(amplitude, disc(50), 16)
    np.testing.assert_allclose(without_shading(shaded, disc(50), 16)[disc(40)], plain[disc(40)], rtol=0.25)
    assert plain[disc(40)].mean() == pytest.approx(1, abs=0.02) and not plain[~disc(50)].any()
    assert envelope_snr(shaded[disc(50)]) < 0.8 * RAYLEIGH_SNR  # what it would be otherwise


def test_pixels_outside_the_mask_count_nowhere() -> None:
    grey = grey_of(np.abs(field(4)))
    changed = np.where(disc(30), grey, 255)
    assert speckle_statistics(grey, disc(30)) == speckle_statistics(changed, disc(30))
    assert set(speckle_statistics(grey, disc(30))) == set(SPECKLE_STATISTICS)


def test_few_pixels_say_nothing() -> None:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask.flat[: MIN_PIXELS - 1] = True
    assert speckle_statistics(grey_of(np.abs(field(5))), mask) is None


def test_width_of_a_square_wave_by_hand() -> None:
    """With period 8 and values +1 and -1, r falls linearly from 1 at lag 0 by 1/2 per pixel; r = 1/2 at lag 1, so the width is 2."""
    image = np.tile(np.repeat([1.0, -1.0], 4), 8)[:, None] * np.ones((1, 64))
    mask = np.ones(image.shape, dtype=bool)
    assert autocorrelation_width(image, mask, 0, 8) == pytest.approx(2.0, abs=0.1)
    assert autocorrelation_width(image, mask, 1, 8) == 16.0  # constant along rows: never falls
    assert np.isnan(autocorrelation_width(np.ones((8, 8)), np.ones((8, 8), dtype=bool), 0, 4))


@pytest.mark.parametrize("mask", [FULL, disc(50)])
def test_white_noise_has_its_variance_at_every_frequency(mask: np.ndarray) -> None:
    noise = np.random.default_rng(6).normal(50, 3, (40, SIDE, SIDE))
    spectrum = np.mean([radial_power_spectrum(image, mask) for image in noise], axis=0)
    assert spectrum.shape == (SIDE // 2,)
    np.testing.assert_allclose(spectrum[4:], 9.0, rtol=0.08)


def test_a_wave_is_found_at_its_frequency() -> None:
    wave = np.cos(2 * np.pi * 20 * np.arange(SIDE) / SIDE)[None] * np.ones((SIDE, 1))
    assert radial_power_spectrum(wave, disc(50)).argmax() + 1 == 20


def test_window_is_soft_and_dark_outside() -> None:
    window = soft_window(disc(40))
    assert not window[~disc(40)].any() and window[disc(20)].min() == 1 and 0 < window[SIDE // 2, 28] < 0.5


def test_spectral_distance_by_hand() -> None:
    assert spectral_distance_db(np.array([10.0, 1.0]), np.array([1.0, 1.0])) == pytest.approx(np.sqrt(50))
    assert spectral_distance_db(np.array([0.0, 1.0]), np.array([1.0, 1.0])) > 1000  # finite
    with pytest.raises(ValueError, match="differ in length"):
        spectral_distance_db(np.ones(3), np.ones(4))


def test_bad_images_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a square image"):
        radial_power_spectrum(np.ones((4, 5)), np.ones((4, 5), dtype=bool))
    with pytest.raises(ValueError, match="mask is empty"):
        radial_power_spectrum(np.ones((8, 8)), np.zeros((8, 8), dtype=bool))
