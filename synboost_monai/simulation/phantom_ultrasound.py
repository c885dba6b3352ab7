"""Simulate the phantom's ultrasound: scatterers -> echo field on (range, angle) -> envelope -> decibels -> sector image.

Speckle is not painted but computed: every scatterer at range r echoes with the phase 4 pi r / wavelength, echoes add up
as complex numbers within the resolution cell, and the envelope of many is Rayleigh distributed: mean / standard
deviation 1.91 (Wagner et al., IEEE Trans. Sonics Ultrason. 1983). A scatterer is a small excess or lack of impedance,
so its sign is random. The resolution cell is the pulse's length in range and, across, a beam that is as wide as the
aperture's near field at the probe and widens in proportion to depth; a weak broad part stands for side lobes.

The scatterers of the myocardium and of all thin layers (pericardium, valves, papillary muscles, walls of
the other chambers) are fixed in the tissue and move with it, so their speckle follows the wall. Blood is new in every
frame, as flowing blood decorrelates between frames. Tissue around the heart and the haze of reverberations do not move;
thermal noise is new in every frame.

Letters: R ranges, A angles (beams), N scatterers, K points of a curve.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from synboost_monai.heart.geometry import fill_polygon
from synboost_monai.simulation.phantom_anatomy import Curve, HeartContours, PatientAnatomy, ViewAnatomy

FloatArray = NDArray[np.float32]
ComplexArray = NDArray[np.complex64]

WAVELENGTH_MM = 0.62
"""1540 m/s at 2.5 MHz, a common cardiac probe."""
PULSE_LENGTH_MM = 1.0
"""Full width at half maximum of the pulse in range: about three periods there and back."""
APERTURE_MM = 16.0
"""Width of the probe's active surface."""
SIDE_LOBE_DB = -26.0
"""Power of the broad part of the beam relative to the main one."""
DYNAMIC_RANGE_DB = 60.0
"""Decibels from black to white."""
MYOCARDIUM_GREY = 125.0
"""Grey level of myocardium at neutral gain."""


@dataclass(frozen=True)
class Probe:
    """Hold the sampling and resolution of a phased-array probe."""

    depth_mm: float
    half_angle: float
    """Half the sector's opening angle in radians."""
    focus_mm: float = 80.0
    range_step_mm: float = 0.32
    angle_step: float = 0.0085
    """Angle between beams in radians."""
    num_margin_beams: int = 6
    """Beams beyond each edge of the sector, so that the edge has neighbours."""

    @functools.cached_property
    def ranges(self) -> NDArray[np.float64]:
        """Return the ranges (R,) in mm."""
        return (
            np.arange(int(np.ceil(self.depth_mm / self.range_step_mm)) + 2, dtype=np.float64) + 0.5
        ) * self.range_step_mm

    @functools.cached_property
    def angles(self) -> NDArray[np.float64]:
        """Return the angles (A,) in radians, 0 is straight down, positive to the right."""
        count = int(np.ceil(self.half_angle / self.angle_step)) + self.num_margin_beams
        return np.arange(-count, count + 1, dtype=np.float64) * self.angle_step

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.ranges), len(self.angles)

    def beam_width_mm(self, range_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the lateral full width at half maximum, there and back: diffraction and, away from the focus, defocus."""
        diffraction = 0.65 * WAVELENGTH_MM * range_mm / APERTURE_MM
        # geometric width of the aperture's cone; beyond the focus, receive focusing removes most of it
        strength = np.where(range_mm < self.focus_mm, 0.18, 0.045)
        return np.hypot(diffraction, strength * APERTURE_MM * np.abs(1 - range_mm / self.focus_mm))

    def grid_position(self, points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Convert points (..., 2) in mm to fractional row and column of the (R, A) grid."""
        x, y = points[..., 0], points[..., 1]
        return np.hypot(x, y) / self.range_step_mm - 0.5, (np.arctan2(x, y) - self.angles[0]) / self.angle_step

    def echo_field(self, points: NDArray[np.float64], amplitude: NDArray[np.float64]) -> ComplexArray:
        """Return the sum of the scatterers' echoes in each cell of the grid, (R, A).

        Args:
            points: (N, 2) in mm; scatterers outside the grid are left out.
            amplitude: (N,).
        """
        row, column = self.grid_position(points)
        phase = 4 * np.pi / WAVELENGTH_MM * np.hypot(points[:, 0], points[:, 1])
        i, j = np.rint(row).astype(np.int64), np.rint(column).astype(np.int64)
        num_ranges, num_beams = self.shape
        inside = (i >= 0) & (i < num_ranges) & (j >= 0) & (j < num_beams)
        cell, phase, amplitude = (i * num_beams + j)[inside], phase[inside], amplitude[inside]
        real = np.bincount(cell, amplitude * np.cos(phase), minlength=num_ranges * num_beams)
        imaginary = np.bincount(cell, amplitude * np.sin(phase), minlength=num_ranges * num_beams)
        return (real + 1j * imaginary).astype(np.complex64).reshape(self.shape)

    def receive(self, field: ComplexArray) -> ComplexArray:
        """Return the field (R, A) seen through the pulse and the beam; a uniform field keeps its mean power."""
        num_ranges, num_beams = self.shape
        pulse, beams, padded = self._transfer
        spectrum = fft.fft(field, padded[0], axis=0) * pulse[:, None]
        field = fft.ifft(spectrum, axis=0)[:num_ranges]
        return fft.ifft(fft.fft(field, padded[1], axis=1) * beams, axis=1)[:, :num_beams]

    def pulse_only(self, field: ComplexArray) -> ComplexArray:
        """Return the field seen through the receiver's bandwidth only (noise has no beam)."""
        pulse, _, padded = self._transfer
        return fft.ifft(fft.fft(field, padded[0], axis=0) * pulse[:, None], axis=0)[: len(field)]

    @functools.cached_property
    def _transfer(self) -> tuple[FloatArray, FloatArray, tuple[int, int]]:
        """Return the transfer functions of the pulse (R',) and of the beam at each range (R, A'), and the padded sizes R', A'."""
        padded = (fft.next_fast_len(self.shape[0] + 12), fft.next_fast_len(self.shape[1] + 40))
        sigma = PULSE_LENGTH_MM / 2.355 / self.range_step_mm
        pulse = np.exp(-0.5 * (2 * np.pi * fft.fftfreq(padded[0]) * sigma) ** 2)
        pulse /= np.sqrt(np.mean(pulse**2))
        sigma_beams = np.minimum(self.beam_width_mm(self.ranges) / 2.355 / self.ranges / self.angle_step, 12.0)[:, None]
        frequency = 2 * np.pi * fft.fftfreq(padded[1])
        main = np.exp(-0.5 * (frequency * sigma_beams) ** 2)
        broad = np.exp(-0.5 * (frequency * np.minimum(6 * sigma_beams, 20.0)) ** 2)
        broad *= np.sqrt(np.mean(main**2, axis=1, keepdims=True) / np.mean(broad**2, axis=1, keepdims=True))
        beams = main + 10 ** (SIDE_LOBE_DB / 20) * broad
        beams /= np.sqrt(np.mean(beams**2, axis=1, keepdims=True))
        return pulse.astype(np.float32), beams.astype(np.float32), padded


def compress(envelope: FloatArray, gain_db: float = 0.0) -> FloatArray:
    """Return the grey levels 0..255 of an envelope whose myocardium has a mean power of 1."""
    decibels = 20 * np.log10(np.maximum(envelope, 1e-6)) + gain_db
    return np.clip(MYOCARDIUM_GREY + decibels * (255 / DYNAMIC_RANGE_DB), 0, 255).astype(np.float32)


class ScanConverter:
    """A ScanConverter turns (R, A) grey levels into the sector image (H, W) uint8, by bilinear interpolation.

    The probe is at the middle of the upper border; pixels outside the sector are exactly 0, those inside at least 1.
    """

    def __init__(self, probe: Probe, image_height: int) -> None:
        self.spacing_mm = probe.depth_mm / image_height
        self.shape = (image_height, sector_width(image_height, probe.half_angle))
        y = (np.arange(self.shape[0])[:, None] + 0.5) * self.spacing_mm
        x = (np.arange(self.shape[1])[None, :] + 0.5 - self.shape[1] / 2) * self.spacing_mm
        points = np.stack(np.broadcast_arrays(x, y), axis=-1)
        self.inside = (np.hypot(x, y) <= probe.depth_mm) & (np.abs(np.arctan2(x, y)) <= probe.half_angle)
        row, column = probe.grid_position(points[self.inside])
        row, column = np.clip(row, 0, probe.shape[0] - 1.001), np.clip(column, 0, probe.shape[1] - 1.001)
        i, j = row.astype(np.int64), column.astype(np.int64)
        self._cell = i * probe.shape[1] + j
        self._down, self._right = (row - i).astype(np.float32), (column - j).astype(np.float32)
        self._num_beams = probe.shape[1]
        # a pixel longer than the range step shows the mean over its length
        self._smoothing = 0.4 * self.spacing_mm / probe.range_step_mm if self.spacing_mm > probe.range_step_mm else 0.0

    def __call__(self, grey: FloatArray) -> NDArray[np.uint8]:
        if self._smoothing:
            grey = ndimage.gaussian_filter1d(grey, self._smoothing, axis=0, truncate=2.5)
        flat, cell, width = grey.ravel(), self._cell, self._num_beams
        upper = flat[cell] * (1 - self._right) + flat[cell + 1] * self._right
        lower = flat[cell + width] * (1 - self._right) + flat[cell + width + 1] * self._right
        image = np.zeros(self.shape, np.uint8)
        image[self.inside] = np.clip(np.rint(upper + (lower - upper) * self._down), 1, 255).astype(np.uint8)
        return image


def sector_width(image_height: int, half_angle: float) -> int:
    """Return the width in pixels of an image whose four borders all touch the sector."""
    return round(2 * image_height * float(np.sin(half_angle)))


@dataclass(frozen=True)
class QualitySettings:
    """Hold the ranges of one grade of image quality, as (lowest, highest) for each draw; decibels relative to myocardium."""

    blood_db: tuple[float, float]
    noise_db: tuple[float, float]
    """Thermal noise at 80 mm; it grows with depth, as the gain does."""
    haze_db: tuple[float, float]
    """Reverberations in front of the heart."""
    dropout_db: tuple[float, float]
    """Loss behind ribs and lung, at the lateral wall (right in the image)."""
    attenuation_db_per_cm: tuple[float, float]
    gain_db: tuple[float, float]


QUALITY_SETTINGS = {
    "good": QualitySettings((-23, -15), (-32, -24), (-16, -8), (0, 5), (-0.1, 0.3), (-3, 4)),
    "medium": QualitySettings((-18, -11), (-25, -17), (-11, -4), (3, 10), (0.0, 0.6), (-5, 4)),
    "poor": QualitySettings((-13, -8), (-19, -11), (-7, 0), (7, 17), (0.2, 1.1), (-8, 3)),
}
"""Settings by the grade in the metadata."""


LAYER_ECHOES = {
    "pericardium": ((0.0, 1.0), 6.0, 0.6, 5.0),
    "papillary": ((-0.5, 0.5), -4.0, 0.0, 4.0),
    "leaflet": ((0.0, 1.0), 3.0, 1.0, 5.0),
    "annulus": ((0.0, 1.0), 8.0, 0.0, 2.0),
    "atrial": ((0.0, 1.0), 4.0, 2.0, 5.0),
    "right": ((0.0, 1.0), 6.0, 1.5, 5.0),
}
"""First word of a layer's name -> extent across it, power in dB, how specular it is, variation along it in dB."""


class UltrasoundView:
    """An UltrasoundView is one patient's view through the probe; `image(contours)` returns a frame.

    Everything that stays the same over a sequence is drawn once, here; frames then draw from the same generator in turn.
    """

    def __init__(
        self,
        patient: PatientAnatomy,
        view: ViewAnatomy,
        image_quality: str,
        image_height: int,
        generator: np.random.Generator,
    ) -> None:
        settings = QUALITY_SETTINGS[image_quality]
        draw = {name: generator.uniform(*getattr(settings, name)) for name in settings.__dataclass_fields__}
        self.probe = Probe(patient.depth_mm, patient.half_angle, focus_mm=generator.uniform(65, 95))
        self.convert = ScanConverter(self.probe, image_height)
        self.gain_db = draw["gain_db"]
        self._blood = _amplitude(draw["blood_db"])
        self._generator = generator
        start = view.contours(0.0)
        self._tissue = self._draw_tissue(start)
        self._haze = self._draw_haze(draw["haze_db"])
        self._transmission = self._draw_transmission(view, draw["dropout_db"], draw["attenuation_db_per_cm"])
        range_mm = self.probe.ranges[:, None]
        self._noise = _amplitude(draw["noise_db"] + 0.12 * (range_mm - 80)).astype(np.float32)
        self._moving = self._draw_moving(start, blood_db=draw["blood_db"])

    def image(self, contours: HeartContours) -> NDArray[np.uint8]:
        """Return the sector image (H, W) of one frame."""
        return self.convert(compress(self.envelope(contours), self.gain_db))

    def envelope(self, contours: HeartContours) -> FloatArray:
        """Return the envelope (R, A) of one frame before log compression; the mean power of unattenuated myocardium is 1."""
        heart = self._fill(contours.epicardium)
        blood = self._fill(contours.cavity) | (self._fill(contours.left_atrium) & ~heart)
        for chamber in (contours.right_ventricle, contours.right_atrium):
            if chamber is not None:
                blood |= self._fill(chamber) & ~heart
        field = np.where(heart | blood, 0, self._tissue)
        field[blood] = self._blood * self._random_field((int(blood.sum()),))
        points, amplitudes = [], []
        for name, scatterers in self._moving.items():
            curve = contours.wall if name in ("myocardium", "trabeculae") else contours.layers[name]
            position, normal = scatterers.positions(curve)
            points.append(position)
            amplitudes.append(scatterers.amplitude * _facing(position, normal, scatterers.specular))
        field += self.probe.echo_field(np.concatenate(points), np.concatenate(amplitudes))
        echo = self.probe.receive(field.astype(np.complex64)) * self._transmission + self._haze
        return np.abs(echo + self.probe.pulse_only(self._noise * self._random_field(self.probe.shape))).astype(
            np.float32
        )

    def _fill(self, polygon: NDArray[np.float64]) -> NDArray[np.bool_]:
        return fill_polygon(*self.probe.grid_position(polygon), self.probe.shape)

    def _random_field(self, shape: tuple[int, ...]) -> ComplexArray:
        """Return echoes of power 1 from cells with many scatterers each: complex normal by the central limit theorem."""
        pairs = self._generator.standard_normal((*shape, 2), dtype=np.float32) * np.float32(np.sqrt(0.5))
        return pairs.view(np.complex64)[..., 0]

    def _smooth_field(self, range_mm: float, lateral_beams: float) -> FloatArray:
        """Return a random field of mean 0 and standard deviation 1 that varies over the given lengths."""
        noise = self._generator.standard_normal(self.probe.shape, dtype=np.float32)
        smooth = ndimage.gaussian_filter(noise, (range_mm / self.probe.range_step_mm, lateral_beams), truncate=2.5)
        return smooth / smooth.std()

    def _draw_tissue(self, contours: HeartContours) -> ComplexArray:
        """Draw the echo field of everything around the heart, which does not move."""
        depth = self.probe.depth_mm
        range_mm, angle = self.probe.ranges[:, None], self.probe.angles[None, :] / self.probe.half_angle
        behind = contours.left_atrium[:, 1].max() - 4
        decibels = (
            -5 + 4.5 * self._smooth_field(14, 12) + 2.5 * self._smooth_field(4, 7) + 3 * self._smooth_field(1.2, 12)
        )
        decibels += 8 / (1 + np.exp(-(range_mm - behind) / 4))  # pericardium and tissue behind the heart
        lung = (
            self._generator.uniform(2, 9)
            / (1 + np.exp(-(angle - 0.5) / 0.1))
            / (1 + np.exp((range_mm - 0.7 * depth) / 6))
        )
        decibels -= lung  # beside the lateral wall
        decibels += 3 * np.exp(-range_mm / 18)  # fat and muscle under the skin
        count = int(2.5 * self.probe.shape[0] * self.probe.shape[1])
        field = self.probe.echo_field(*_uniform_scatterers(self.probe, self._generator, count)) * 2.5**-0.5
        return (field * _amplitude(decibels)).astype(np.complex64)

    def _draw_haze(self, haze_db: float) -> ComplexArray:
        """Draw reverberations between probe and chest wall: bright rings at the tip, then a haze that fades with depth."""
        range_mm = self.probe.ranges[:, None]
        rings = 14 * np.exp(-range_mm / 5) * (1 + 0.5 * np.cos(2 * np.pi * range_mm / self._generator.uniform(2.5, 4)))
        decay = self._generator.uniform(0.12, 0.25)
        decibels = haze_db + rings - decay * np.maximum(range_mm - 15, 0) + 3 * self._smooth_field(5, 20)
        return self.probe.receive(
            (_amplitude(decibels) * self._random_field(self.probe.shape)).astype(np.complex64)
        ).astype(np.complex64)

    def _draw_transmission(self, view: ViewAnatomy, dropout_db: float, attenuation_db_per_cm: float) -> FloatArray:
        """Draw the share of the amplitude that is transmitted to each place and back: attenuation, shadows of ribs and lung."""
        range_mm, angle = self.probe.ranges[:, None], self.probe.angles[None, :] / self.probe.half_angle
        edge = self._generator.uniform(0.15, 0.5)
        shadow = dropout_db / (1 + np.exp(-(angle - edge) / 0.09))
        left = 0.5 * dropout_db * self._generator.uniform() / (1 + np.exp((angle + 0.7) / 0.08))
        ripple = 1.5 * ndimage.gaussian_filter1d(self._generator.standard_normal(self.probe.shape[1]) * 3, 5)[None, :]
        onset = 1 / (1 + np.exp(-(range_mm - 30) / 8))
        decibels = -(shadow + left) * onset + ripple - attenuation_db_per_cm * (range_mm - 70) / 10
        return _amplitude(decibels).astype(np.float32)

    def _draw_moving(self, contours: HeartContours, blood_db: float) -> dict[str, _Scatterers]:
        """Draw scatterers that are fixed in tissue, by the name of their layer."""
        generator, probe = self._generator, self.probe
        moving = {
            "myocardium": _Scatterers.draw(probe, contours.wall, generator, (0, 1), 0.0, specular=0.6, clumps=4.5)
        }
        moving["trabeculae"] = _Scatterers.draw(probe, contours.wall, generator, (-0.35, 0.05), -9.0, clumps=9.0)
        for name, curve in contours.layers.items():
            across, decibels, specular, clumps = LAYER_ECHOES[name.split("_")[0]]
            moving[name] = _Scatterers.draw(probe, curve, generator, across, decibels, specular=specular, clumps=clumps)
        return moving


@dataclass(frozen=True)
class _Scatterers:
    """Hold scatterers in a curve's layer: s along it (0..1), w across it (0 on the curve, 1 on the layer's far side)."""

    s: NDArray[np.float64]
    w: NDArray[np.float64]
    amplitude: NDArray[np.float64]
    specular: float
    """0: equal echoes in all directions; more: a surface that is brightest when it faces the probe."""

    @classmethod
    def draw(
        cls,
        probe: Probe,
        curve: Curve,
        generator: np.random.Generator,
        across: tuple[float, float],
        decibels: float,
        *,
        specular: float = 0.0,
        clumps: float = 0.0,
    ) -> _Scatterers:
        """Draw scatterers of a layer, about three per cell of the grid, with a mean power of `decibels` in each cell.

        Args:
            across: the layer's extent in w.
            clumps: standard deviation in dB of the variation along the curve.
        """
        step = np.linalg.norm(np.diff(curve.points, axis=0), axis=1)
        breadth = curve.thickness.mean() * (across[1] - across[0])
        mean_cell_mm2 = probe.range_step_mm * probe.angle_step * np.linalg.norm(curve.points, axis=1).mean()
        count = int(np.clip(3 * step.sum() * breadth / mean_cell_mm2, 200, 120_000))
        s, w = generator.uniform(0, 1, count), generator.uniform(*across, count)
        position, _ = cls(s, w, np.ones(count), 0.0).positions(curve)
        # power of a cell = scatterers in it x amplitude^2; a scatterer represents this area
        index = np.minimum((s * len(step)).astype(np.int64), len(step) - 1)
        area_mm2 = step[index] * len(step) * curve.thickness[index] * (across[1] - across[0]) / count
        cell_mm2 = probe.range_step_mm * probe.angle_step * np.linalg.norm(position, axis=1)
        smooth = ndimage.gaussian_filter1d(generator.standard_normal(64), 1.5, mode="nearest")
        variation = clumps * np.interp(s, np.linspace(0, 1, 64), smooth / smooth.std())
        amplitude = np.sqrt(area_mm2 / cell_mm2) * _amplitude(decibels + variation)
        return cls(s, w, amplitude * _signs(generator, count), specular)

    def positions(self, curve: Curve) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the positions of the scatterers (N, 2) in mm when their layer has this shape, and the normals there."""
        at = self.s * (len(curve.points) - 1)
        i = np.minimum(at.astype(np.int64), len(curve.points) - 2)
        f = (at - i)[:, None]
        normal = curve.normals[i] * (1 - f) + curve.normals[i + 1] * f
        thickness = curve.thickness[i] * (1 - f[:, 0]) + curve.thickness[i + 1] * f[:, 0]
        return curve.points[i] * (1 - f) + curve.points[i + 1] * f + (self.w * thickness)[:, None] * normal, normal


def _facing(position: NDArray[np.float64], normal: NDArray[np.float64], specular: float) -> NDArray[np.float64] | float:
    """Return the factor on a surface's amplitude for the angle at which the beam meets it; never below a tenth."""
    if specular == 0:
        return 1.0
    cosine = np.abs(np.einsum("nk,nk->n", position, normal)) / np.maximum(np.linalg.norm(position, axis=1), 1e-6)
    return np.maximum(1.5**specular * (0.15 + cosine) ** specular, 0.1)


def _uniform_scatterers(
    probe: Probe, generator: np.random.Generator, count: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw points (N, 2) in mm, on average equally many in each cell of the (R, A) grid, and amplitudes (N,) of 1 or -1."""
    r = generator.uniform(0, probe.shape[0] * probe.range_step_mm, count)
    angle = generator.uniform(probe.angles[0] - probe.angle_step / 2, probe.angles[-1] + probe.angle_step / 2, count)
    return np.stack([r * np.sin(angle), r * np.cos(angle)], axis=1), _signs(generator, count)


def _signs(generator: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Draw 1 or -1, (N,)."""
    return generator.integers(0, 2, count).astype(np.float64) * 2 - 1


def _amplitude(decibels: NDArray[Any] | float) -> NDArray[np.float64]:
    """Convert a power in decibels to an amplitude."""
    return np.asarray(10 ** (np.asarray(decibels, np.float64) / 20))
