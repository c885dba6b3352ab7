#!/usr/bin/env python
"""Check that a clip stored in the archive of setup_archive.sh is seen in OHIF with its results: each contour on its frame and in its place.

    python scripts/check_archive.py [--work_dir DIR] [--shots SHOTS] [--clip CLIP] [--ports "3000 8043 4243 11112"]

Sets up everything anew, stores the real clip of pydicom-data (extra `example`) and drives Chromium as a person would: opens the study, the
overlay, the segmentation and the contours, and goes to end-diastole and end-systole. The contours that it looks for come from the
segmentation as the archive gives it. Needs Debian, root for the first time, Chromium, and the extras listen, example and dev. Prints a
line for each check and the minutes; the exit code is 0 if every line holds, 1 otherwise. --shots keeps the pictures of OHIF, --work_dir
keeps everything.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pictures import example_clip
from scipy import fft, ndimage

from synboost_monai.dicom.writing import contours, overlay, pdf, seg
from synboost_monai.structures import STRUCTURES

SCRIPTS = Path(__file__).resolve().parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
"""Chromium draws without a GPU; OHIF needs WebGL."""
OPTIONS = ["--frames", "all", "--contours", "true", "--quiet_seconds", "2"]
NUM_OBJECTS = 6
"""Clip, segmentation, report, overlay, page for people, contours."""
PATIENCE_S = 180
"""Longest wait for anything on a busy machine."""
YELLOW, GREEN = (255, 255, 0), (0, 255, 0)
"""OHIF's colours for outlines of a structured report; the chosen one is green."""
REACH = 3
"""Distance in pixels of the screen up to which a colour counts as being at a place: lines are two pixels wide or more, or dashed."""
SEEN, NOT_SEEN = 0.8, 0.6
"""Share of a contour's points where its colour is, at least on its own frame, and at most on a frame of another phase. An overlay draws the
cavity over the inner side of the muscle; an area that is filled hides the smaller one of another frame, so there one structure counts."""


class Table:
    """Hold the results of the checks as lines of a table, with the minutes since the beginning."""

    def __init__(self) -> None:
        self.num_failed, self.start = 0, time.monotonic()

    def add(self, name: str, is_right: bool, found: str = "") -> None:
        self.num_failed += not is_right
        minutes = (time.monotonic() - self.start) / 60
        print(f"{minutes:4.1f} min  {'ok  ' if is_right else 'FAIL'}  {name:<45} {found}".rstrip(), flush=True)


@dataclass(frozen=True)
class Placement:
    """Say where an image lies on a picture of the screen."""

    scale: float
    """Pixels of the screen per pixel of the image."""
    left: float
    top: float
    likeness: float
    """Correlation of image and picture, up to 1."""

    def moved(self, rows: float, columns: float) -> Placement:
        """Return the place of an image in which this one begins at another pixel."""
        return replace(self, top=self.top + rows * self.scale, left=self.left + columns * self.scale)

    def places(self, points: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the pixels (row, column) of the picture of points (column, row) of the image, 0 at its corner."""
        return np.floor(points[:, ::-1] * self.scale + (self.top, self.left)).astype(np.int64)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work_dir", type=Path, help="a new folder that is kept")
    parser.add_argument("--shots", type=Path, help="folder for pictures of the screen")
    parser.add_argument("--clip", type=Path, help="another clip, of one apical view")
    parser.add_argument("--ports", default="", help="as SYNBOOST_PORTS of setup_archive.sh; by default free ones")
    options = parser.parse_args()
    ports = [int(port) for port in options.ports.split()] or free_ports(4)
    with tempfile.TemporaryDirectory() as temporary:
        shots = options.shots or Path(temporary) / "shots"
        shots.mkdir(parents=True, exist_ok=True)
        return check(options.clip or Path(example_clip()), options.work_dir or Path(temporary) / "work", shots, ports)


def check(clip: Path, work_dir: Path, shots: Path, ports: Sequence[int]) -> int:
    """Run all checks and return the exit code."""
    import pydicom

    table = Table()
    with archive(work_dir, ports):
        web = f"http://127.0.0.1:{ports[1]}"
        wait_until(lambda: answers(web), "Orthanc did not start")
        table.add("archive, viewer and node run", True)
        stored = json.loads(ask(f"{web}/instances", clip.read_bytes()))
        wait_until(lambda: count(web) == NUM_OBJECTS, "the results did not come back")
        table.add("the results are back", True)
        source = pydicom.dcmread(io.BytesIO(ask(f"{web}/instances/{stored['ID']}/file")))
        (results,) = (
            json.loads(path.read_text(encoding="utf-8")) for path in work_dir.glob("node/runs/*/*/studies/*/*.json")
        )
        (found,) = results["clips"]
        frames = [found["end_diastolic_frame"], found["end_systolic_frame"]]
        known = known_contours(fetch(web, "SEG"), source, frames)
        look(table, ports[0], source, frames, known, shots)
    return int(table.num_failed > 0)


def look(
    table: Table,
    port: int,
    source: Any,
    frames: Sequence[int],
    known: Mapping[int, Sequence[NDArray[np.float64]]],
    shots: Path,
) -> None:
    """Open the study in OHIF and check what is to be seen of each object."""
    from playwright.sync_api import sync_playwright

    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        raise SystemExit("check_archive.py: Chromium is not installed")
    image = grey_frame(source, frames[0])
    colours = [[structure.colour] for structure in STRUCTURES]
    end_diastole, end_systole = frames
    between = (end_diastole + end_systole) // 2
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
        viewer = Viewer(browser, f"http://127.0.0.1:{port}/viewer?StudyInstanceUIDs={source.StudyInstanceUID}", shots)
        viewer.open(int(source.get("SeriesNumber") or 1))
        placed = placement(image, viewer.picture(end_diastole, "clip").mean(axis=2))
        table.add("the clip is shown", placed.likeness > 0.8, f"correlation {placed.likeness:.3f}")
        num_coloured = [shares(viewer.picture(n, "clip"), known[n], placed, colours) for n in frames]
        table.add("the clip alone shows no contour", np.max(num_coloured) < 0.2, percent(num_coloured))

        for name, number in (("overlay", overlay.SERIES.number), ("segmentation", seg.SERIES.number)):
            viewer.open(number)
            on_screen = placed
            if name == "overlay":  # shows the region alone, so larger
                top, left, bottom, right = region_of(source)
                picture = viewer.picture(end_diastole, name).mean(axis=2)
                region = placement(image[top:bottom, left:right], picture)
                on_screen = region.moved(-top, -left)
            for own, other in ((end_diastole, end_systole), (end_systole, end_diastole)):
                picture = viewer.picture(own, name)
                seen = shares(picture, known[own], on_screen, colours)
                table.add(f"{name}, frame {own}: its contours", min(seen) >= SEEN, percent(seen))
                seen = shares(picture, known[other], on_screen, colours)
                is_other = (max(seen) if name == "overlay" else min(seen)) < NOT_SEEN
                table.add(f"{name}, frame {own}: not those of frame {other}", is_other, percent(seen))

        viewer.open(contours.SERIES.number)
        colours = [[YELLOW, GREEN]] * len(STRUCTURES)
        for own in (between, end_systole, end_diastole):
            picture = viewer.picture(own, "contours")
            seen = shares(picture, known[own if own in frames else end_diastole], placed, colours)
            if own in frames:
                table.add(f"contours, frame {own}: on the clip itself", min(seen) >= SEEN, percent(seen))
            else:
                table.add(f"contours, frame {own}: none", max(seen) < 0.2, percent(seen))

        viewer.open(pdf.SERIES.number)
        white = float((viewer.page_picture("page").min(axis=2) > 250).mean())
        table.add("page for people: white paper", white > 0.2, f"{white:.0%} of the window")
        browser.close()


class Viewer:
    """Drive OHIF by mouse and keyboard."""

    def __init__(self, browser: Any, url: str, shots: Path) -> None:
        self.page, self.url, self.shots = browser.new_page(viewport={"width": 1400, "height": 900}), url, shots
        self.page.set_default_timeout(1000 * PATIENCE_S)

    def open(self, series_number: int) -> None:
        """Open a series in a page that is loaded anew."""
        self.page.goto(self.url)
        self.page.wait_for_selector("canvas.cornerstone-canvas")
        self.page.wait_for_timeout(3000)
        for words in ("Skip all", "Confirm and hide"):  # a tour, and that OHIF is for investigational use
            button = self.page.get_by_text(words)
            if button.count() and button.first.is_visible():
                button.first.click()
        thumbnails = self.page.locator("[data-cy^='study-browser-thumbnail']").all()
        (series,) = [item for item in thumbnails if f"S:{series_number}" in item.inner_text().split()]
        series.dblclick()
        self.page.wait_for_timeout(5000)

    def picture(self, frame: int, name: str) -> NDArray[np.uint8]:
        """Go to a frame and return the picture of the viewport, (h, w, 3); without a frame number on it, wherever it is."""
        corner = self.page.locator("text=/\\(\\d+\\/\\d+\\)/").first
        box = self.page.locator(".cornerstone-viewport-element").first
        end = time.monotonic() + PATIENCE_S
        while (at := int(re.findall(r"\((\d+)/", corner.inner_text())[0])) != frame:
            if time.monotonic() > end:
                raise SystemExit(f"check_archive.py: OHIF stays on frame {at} of {name}; {frame} was wanted")
            self.page.keyboard.press("ArrowDown" if at < frame else "ArrowUp")
            self.page.wait_for_timeout(60)
        return self._settled(box, f"{name}_{frame}")

    def page_picture(self, name: str) -> NDArray[np.uint8]:
        """Return the picture of the whole window."""
        return self._settled(self.page, name)

    def _settled(self, what: Any, name: str) -> NDArray[np.uint8]:
        """Return a picture once two in a row are the same."""
        from PIL import Image

        last, path = b"", self.shots / f"{name}.png"
        for _ in range(30):
            self.page.wait_for_timeout(1000)
            shot = what.screenshot(path=path)
            if shot == last:
                break
            last = shot
        return np.asarray(Image.open(path).convert("RGB"))


# --- what is known, and where it is on the screen


def known_contours(file: Any, source: Any, frames: Sequence[int]) -> dict[int, list[NDArray[np.float64]]]:
    """Return the outlines of each structure on some frames of a segmentation, as points (column, row) of the image."""
    import highdicom

    masks = highdicom.seg.segread(file).get_pixels_by_source_frame(
        source.SOPInstanceUID, list(frames), ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    found = {}
    for frame, planes in zip(frames, masks):
        lines = [contours.outline_of(planes[..., structure.class_index - 1] > 0) for structure in STRUCTURES]
        found[frame] = [line for line in lines if line is not None]
        if len(found[frame]) != len(STRUCTURES):
            raise SystemExit(f"check_archive.py: the clip's frame {frame} lacks a structure; choose another --clip")
    return found


def grey_frame(source: Any, number: int) -> NDArray[np.float64]:
    """Return a frame, counted from 1, as grey values."""
    from pydicom.pixels import pixel_array

    frame = np.asarray(pixel_array(source, index=number - 1), np.float64)
    return frame.mean(axis=2) if frame.ndim == 3 else frame


def region_of(source: Any) -> tuple[int, int, int, int]:
    """Return top, left, bottom and right of the ultrasound region, which is the whole image if the header has none."""
    for region in source.get("SequenceOfUltrasoundRegions", ()):
        left, top, right, bottom = (region[f"RegionLocation{k}"].value for k in ("MinX0", "MinY0", "MaxX1", "MaxY1"))
        return top, left, bottom + 1, right + 1
    return 0, 0, source.Rows, source.Columns


def placement(image: NDArray[np.float64], picture: NDArray[np.float64]) -> Placement:
    """Return where an image lies on a picture of the screen, which may show more or less than the image.

    Args:
        image: (h, w) grey.
        picture: (H, W) grey.
    """
    fitting = min(np.divide(picture.shape, image.shape))
    coarse = max((_correlate(image, picture, fitting * f, 4) for f in np.linspace(0.9, 1.1, 21)), key=_likeness)
    fine = max((_correlate(image, picture, coarse.scale * f, 2) for f in np.linspace(0.99, 1.01, 11)), key=_likeness)
    return max((_correlate(image, picture, fine.scale * f, 1) for f in np.linspace(0.999, 1.001, 3)), key=_likeness)


def _likeness(found: Placement) -> float:
    return found.likeness


def _correlate(image: NDArray[np.float64], picture: NDArray[np.float64], scale: float, reduction: int) -> Placement:
    """Return the best place of an image of a given scale, by cross-correlation of both made smaller; around it the screen is black."""
    small = ndimage.zoom(picture, 1 / reduction, order=1, grid_mode=True, mode="nearest")
    shown = ndimage.zoom(image, scale / reduction, order=1, grid_mode=True, mode="nearest")
    shape = [fft.next_fast_len(a + b, real=True) for a, b in zip(small.shape, shown.shape)]
    product = fft.irfft2(fft.rfft2(small, shape) * np.conj(fft.rfft2(shown, shape)), shape)
    row, column = (int(i) for i in np.unravel_index(product.argmax(), product.shape))
    top, left = (i - n if i >= m else i for i, m, n in zip((row, column), small.shape, shape))
    likeness = float(product.max() / (np.linalg.norm(small) * np.linalg.norm(shown)))
    return Placement(scale, left * reduction, top * reduction, likeness)


def shares(
    picture: NDArray[np.uint8],
    lines: Sequence[NDArray[np.float64]],
    placed: Placement,
    colours: Sequence[Sequence[tuple[int, int, int]]],
) -> list[float]:
    """Return for each line the share of its points that have one of its colours on the screen, or close by.

    Args:
        picture: (H, W, 3).
        lines: points (column, row) of the image.
        placed: where the image is on the picture.
        colours: colours of each line.
    """
    found = []
    for line, of_line in zip(lines, colours):
        near = ndimage.binary_dilation(
            np.any([has_colour(picture, colour) for colour in of_line], axis=0), np.ones((2 * REACH + 1,) * 2)
        )
        rows, columns = placed.places(line).T
        inside = (rows >= 0) & (columns >= 0) & (rows < near.shape[0]) & (columns < near.shape[1])
        found.append(float(near[rows[inside], columns[inside]].sum() / len(line)))
    return found


def has_colour(picture: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Return where a picture (H, W, 3) has a colour's hue, however dark or mixed with grey, but not grey itself."""
    values = picture.astype(np.float64)
    chroma = values.max(axis=2) - values.min(axis=2)
    difference = np.abs(_hue(values) - _hue(np.array(colour, np.float64)))
    return np.asarray((chroma > 45) & (np.minimum(difference, 360 - difference) < 18))


def _hue(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the hue of colours (..., 3) in degrees."""
    red, green, blue = np.moveaxis(values, -1, 0)
    return np.asarray(np.degrees(np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)) % 360)


def percent(values: Any) -> str:
    return " ".join(f"{value:.0%}" for value in np.ravel(values))


# --- the archive


@contextmanager
def archive(work_dir: Path, ports: Sequence[int]) -> Iterator[None]:
    """Run setup_archive.sh in a new folder, and end all that it started."""
    work_dir.mkdir(parents=True)
    command = work_dir / "synboost"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m synboost_monai "$@"\n', encoding="utf-8")
    command.chmod(0o700)
    environment = {**os.environ, "SYNBOOST": str(command), "SYNBOOST_PORTS": " ".join(map(str, ports))}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SCRIPTS.parent), os.environ.get("PYTHONPATH")]))
    log_path = work_dir / "setup_archive.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            ["bash", str(SCRIPTS / "setup_archive.sh"), str(work_dir), *OPTIONS],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield
    except BaseException:
        print(log_path.read_text(encoding="utf-8", errors="replace")[-3000:], file=sys.stderr)
        raise
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def free_ports(number: int) -> list[int]:
    """Return some ports that nobody listens on."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def ask(url: str, data: bytes | None = None) -> bytes:
    with urllib.request.urlopen(url, data, timeout=60) as answer:
        return bytes(answer.read())


def answers(web: str) -> bool:
    try:
        return bool(ask(f"{web}/system"))
    except OSError:
        return False


def count(web: str) -> int:
    return int(json.loads(ask(f"{web}/statistics"))["CountInstances"])


def fetch(web: str, modality: str) -> io.BytesIO:
    """Return the archive's one object of a modality."""
    query = json.dumps({"Level": "Instance", "Query": {"Modality": modality}}).encode()
    (identifier,) = json.loads(ask(f"{web}/tools/find", query))
    return io.BytesIO(ask(f"{web}/instances/{identifier}/file"))


def wait_until(holds: Callable[[], bool], otherwise: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > end:
            raise SystemExit(f"check_archive.py: {otherwise} within {PATIENCE_S} s")
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
