"""Provide shared fixtures: tiny CAMUS trees of both releases and a datalist of one."""

from __future__ import annotations

import gc
import shlex
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.forked import LIBRARIES, LIBRARIES_OF_TESTS, fork_server_folder, forks_as_python

IMAGE_SHAPE = (48, 40)
"""(H, W) of every image in the tiny trees, in display order."""
SPACING_MM = (1.5, 2.0)
"""(row, column): anisotropic, so that a swap of the axes shows."""

CURRENT_INFO = (
    "ED: 1\nES: 18\nNbFrame: 18\nSex: {sex}\nAge: {age}\nImageQuality: {quality}\nEF: {ef}\nFrameRate: 41.3\n"
)
FIRST_INFO = (
    "ED: 1\nES: 18\nNbFrame: 18\nSex: {sex}\nAge: {age:.1f}\nImageQuality: {quality}\nLVedv: 94.5\nLVesv: 41.1\n"
    "LVef: {ef}\n"
)


def pytest_configure(config: pytest.Config) -> None:
    """Start the server of forks; when the whole suite is run, the workers of pytest-xdist are such forks themselves."""
    is_whole = config.args_source == pytest.Config.ArgsSource.TESTPATHS
    folder = fork_server_folder([*LIBRARIES, *LIBRARIES_OF_TESTS] if is_whole else LIBRARIES)
    if hasattr(config, "workerinput"):
        sys.executable = (folder / "real").read_text(encoding="utf-8")
    elif is_whole and config.pluginmanager.has_plugin("xdist"):
        config.option.tx = [f"popen//python={shlex.quote(str(folder / 'python'))}"] * len(config.option.tx or ())


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the garbage collector from the tests that are being collected, which live until the end: a sixth of the time of a collection."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files with slow tests first, so that no worker has a long one left when the others are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture
def computes_in_16_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute in 16 bits where a test asks for it, on processors too that have no instructions for it."""
    from synboost_monai.networks import precision

    monkeypatch.setattr(precision, "cpu_computes_in", lambda dtype: True)


def make_label_map(phase: str = "ED", shift: int = 0) -> NDArray[np.uint8]:
    """Draw a label map (48, 40) with all four classes: a cavity, the muscle around it, the atrium below; smaller at ES."""
    rows, columns = np.mgrid[: IMAGE_SHAPE[0], : IMAGE_SHAPE[1]]
    scale = 1.0 if phase == "ED" else 0.75
    x = columns - 20 - shift
    label_map = np.zeros(IMAGE_SHAPE, np.uint8)
    label_map[((rows - 20) / (14 * scale + 3)) ** 2 + (x / (8 * scale + 3)) ** 2 < 1] = 2
    label_map[((rows - 20) / (14 * scale)) ** 2 + (x / (8 * scale)) ** 2 < 1] = 1
    label_map[((rows - 40) / 6) ** 2 + (x / 7) ** 2 < 1] = 3
    return label_map


def make_image(label_map: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
    """Draw an image (48, 40) of a label map: each class has its own brightness with speckle, dark outside a sector."""
    rows, columns = np.mgrid[: IMAGE_SHAPE[0], : IMAGE_SHAPE[1]]
    brightness = np.array([90, 25, 160, 35])[label_map]
    speckle = generator.rayleigh(0.8, IMAGE_SHAPE)
    is_inside = np.abs(columns - 19.5) <= 2 + 0.6 * rows
    return np.where(is_inside, np.clip(brightness * speckle, 1, 255), 0).astype(np.uint8)


def write_nifti(path: Path, pixels: NDArray[np.uint8], spacing_mm: tuple[float, float] = SPACING_MM) -> None:
    """Write (H, W) or (frames, H, W) as CAMUS does: stored (x, y[, frame])."""
    import nibabel as nib

    image = nib.Nifti1Image(pixels.T, np.diag([-spacing_mm[1], -spacing_mm[0], 1, 1]))
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def write_metaimage(path: Path, pixels: NDArray[np.uint8], spacing_mm: tuple[float, float] = SPACING_MM) -> None:
    """Write (H, W) or (frames, H, W) as .mhd and .raw with three axes, as the first release has them."""
    frames = pixels if pixels.ndim == 3 else pixels[None]
    num_frames, height, width = frames.shape
    path.with_suffix(".raw").write_bytes(np.ascontiguousarray(frames).tobytes())
    path.write_text(
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
        f"ElementSpacing = {spacing_mm[1]} {spacing_mm[0]} 1\nDimSize = {width} {height} {num_frames}\n"
        f"ElementType = MET_UCHAR\nElementDataFile = {path.with_suffix('.raw').name}\n"
    )


def write_patient(
    folder: Path,
    *,
    seed: int,
    first_release: bool = False,
    views: Sequence[str] = ("2CH", "4CH"),
    with_labels: bool = True,
    with_info: bool = True,
    with_sequences: bool = False,
) -> None:
    """Write one patient's folder of either release."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    write, suffix = (write_metaimage, ".mhd") if first_release else (write_nifti, ".nii.gz")
    for view in views:
        stem = f"{folder.name}_{view}"
        frames, label_maps = [], []
        for phase in ("ED", "ES"):
            label_map = make_label_map(phase, shift=seed % 5 - 2)
            image = make_image(label_map, generator)
            write(folder / f"{stem}_{phase}{suffix}", image)
            if with_labels:
                write(folder / f"{stem}_{phase}_gt{suffix}", label_map)
            frames.append(image)
            label_maps.append(label_map)
        if with_sequences:
            part = "sequence" if first_release else "half_sequence"
            write(folder / f"{stem}_{part}{suffix}", np.stack(frames))
            if with_labels and not first_release:
                write(folder / f"{stem}_{part}_gt{suffix}", np.stack(label_maps))
        if with_info:
            facts = {
                "sex": "FM"[seed % 2],
                "age": 40 + seed,
                "quality": ("Good", "Medium", "Poor")[seed % 3],
                "ef": 50 + seed,
            }
            (folder / f"Info_{view}.cfg").write_text((FIRST_INFO if first_release else CURRENT_INFO).format(**facts))


def write_camus(
    root: Path,
    *,
    num_training: int = 4,
    num_validation: int = 1,
    num_testing: int = 1,
    views: Sequence[str] = ("2CH", "4CH"),
    with_info: bool = True,
    with_sequences: bool = False,
) -> Path:
    """Write a tiny copy of the current release: patients numbered training, validation, testing in turn."""
    first = 1
    for section, count in (("training", num_training), ("validation", num_validation), ("testing", num_testing)):
        patients = [f"patient{number:04d}" for number in range(first, first + count)]
        for number, patient in enumerate(patients, start=first):
            folder = root / "database_nifti" / patient
            write_patient(folder, seed=number, views=views, with_info=with_info, with_sequences=with_sequences)
        (root / "database_split").mkdir(parents=True, exist_ok=True)
        if patients:
            (root / "database_split" / f"subgroup_{section}.txt").write_text("\n".join(patients) + "\n")
        first += count
    return root


def write_first_camus(root: Path, *, num_training: int = 6, num_testing: int = 2, testing_labels: bool = True) -> Path:
    """Write a tiny copy of the first release; testing patients are numbered from 1 again, as there."""
    for number in range(1, num_training + 1):
        write_patient(root / "training" / f"patient{number:04d}", seed=number, first_release=True, with_sequences=True)
    for number in range(1, num_testing + 1):
        folder = root / "testing" / f"patient{number:04d}"
        write_patient(folder, seed=30 + number, first_release=True, with_labels=testing_labels, with_sequences=True)
    return root


@pytest.fixture(scope="session")
def camus_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sound tiny copy of the current release (4 + 1 + 1 patients, two views, sequences): do not write into it."""
    return write_camus(tmp_path_factory.mktemp("camus"), with_sequences=True)


@pytest.fixture(scope="session")
def datalist_dir(camus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the datalist.json of `camus_dir`: 16 training, 4 validation, 4 testing images."""
    from synboost_monai.data import read_camus, write_datalist

    folder = tmp_path_factory.mktemp("prepared")
    write_datalist(
        folder, read_camus(camus_dir, progress=False).splits, name="tiny CAMUS", description="made by conftest.py"
    )
    return folder


@pytest.fixture
def make_camus(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a fresh tiny copy of the current release to damage; it takes the arguments of `write_camus`."""
    return lambda **options: write_camus(tmp_path / "camus", **options)


@pytest.fixture
def make_first_camus(tmp_path: Path) -> Callable[..., Path]:
    """Return the same for the first release; it takes the arguments of `write_first_camus`."""
    return lambda **options: write_first_camus(tmp_path / "camus_first", **options)


@pytest.fixture
def python_forks() -> Iterator[None]:
    """Have every Python that a test starts be a fork with torch and MONAI in memory (`forked.forks_as_python`)."""
    with forks_as_python():
        yield


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the environment that torchrun gives to the only process of a distributed run."""
    import socket

    import ignite.distributed.utils

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    environment = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for key, value in environment.items():
        monkeypatch.setenv(key, str(value))
    for name in ("_model", "_need_to_sync"):  # ignite keeps the process group in mind, which later tests do not have
        monkeypatch.setattr(ignite.distributed.utils, name, getattr(ignite.distributed.utils, name))
