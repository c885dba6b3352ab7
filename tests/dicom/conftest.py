"""Build ultrasound objects of every encoding for the tests."""

from __future__ import annotations

import importlib.util
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

SYNTAXES = {
    "implicit": "1.2.840.10008.1.2",
    "explicit": "1.2.840.10008.1.2.1",
    "deflated": "1.2.840.10008.1.2.1.99",
    "big_endian": "1.2.840.10008.1.2.2",
    "encapsulated": "1.2.840.10008.1.2.1.98",
    "jpeg": "1.2.840.10008.1.2.4.50",
    "jpeg_lossless": "1.2.840.10008.1.2.4.70",
    "jpeg_ls": "1.2.840.10008.1.2.4.80",
    "jpeg_2000": "1.2.840.10008.1.2.4.90",
    "rle": "1.2.840.10008.1.2.5",
}
"""Short name -> transfer syntax UID."""
US_IMAGE, US_CLIP = "1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.3.1"

MakeUltrasound = Callable[..., Path]


def tissue_region(
    left: int, top: int, right: int, bottom: int, delta_cm: tuple[float, float] = (0.05, 0.05), **others: Any
) -> Dataset:
    """Make one region of 2-D tissue; both corners belong to it; `delta_cm` is (x, y)."""
    return dataset(
        **{
            "RegionSpatialFormat": 1,
            "RegionDataType": 1,
            "RegionFlags": 2,
            "RegionLocationMinX0": left,
            "RegionLocationMinY0": top,
            "RegionLocationMaxX1": right,
            "RegionLocationMaxY1": bottom,
            "PhysicalUnitsXDirection": 3,
            "PhysicalUnitsYDirection": 3,
            "PhysicalDeltaX": delta_cm[0],
            "PhysicalDeltaY": delta_cm[1],
            **others,
        }
    )


def dataset(**attributes: Any) -> Dataset:
    """Make a data set of these attributes, without those that are None."""
    made = Dataset()
    for keyword, value in attributes.items():
        if value is not None:
            setattr(made, keyword, value)
    return made


def moving_frames(num_frames: int = 3, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """Draw frames (T, H, W) uint8: smooth, so that lossy codecs stay close; asymmetric, so that a swap of axes shows; all different."""
    rows, columns = np.mgrid[:height, :width]
    frames = [40 + 2 * rows + columns + 9 * ((t + seed) % 7) for t in range(num_frames)]
    return np.clip(np.stack(frames), 0, 255).astype(np.uint8)


def jpeg(frame: np.ndarray, colour: str = "") -> bytes:
    """Encode (H, W), or (H, W, 3) as RGB, as a baseline JPEG (the encoder converts RGB to luma and chroma)."""
    from PIL import Image

    stream = io.BytesIO()
    options: dict[str, Any] = {"keep_rgb": True} if colour == "RGB" else {}
    Image.fromarray(frame).save(stream, "JPEG", quality=95, **options)
    return stream.getvalue()


def without_jfif(data: bytes) -> bytes:
    """Return a JPEG as scanners write it, without the JFIF marker."""
    assert data[2:4] == b"\xff\xe0"
    return data[:2] + data[4 + int.from_bytes(data[4:6], "big") :]


def compressed(frame: np.ndarray, encoding: str, bits: int) -> bytes:
    """Encode one frame, (H, W) or (H, W, 3), in an encoding of `SYNTAXES`."""
    height, width = frame.shape[:2]
    samples = frame.shape[2] if frame.ndim == 3 else 1
    if encoding == "encapsulated":
        return frame.tobytes()
    if encoding == "jpeg":
        return jpeg(frame)
    if encoding == "jpeg_ls":
        from jpeg_ls.CharLS import encode_buffer

        return bytes(encode_buffer(frame.tobytes(), height, width, samples, bits, interleave_mode=2))
    if encoding == "jpeg_2000":
        from openjpeg.utils import encode_array

        return encode_array(
            frame, bits_stored=bits, photometric_interpretation=1 if samples == 3 else 2, use_mct=samples == 3
        )
    assert encoding == "rle"
    planes = np.moveaxis(frame, -1, 0) if samples == 3 else frame[None]
    segments = [
        bytes(part)
        for plane in planes
        for part in (np.ascontiguousarray(plane).view(np.uint8).reshape(-1, frame.itemsize).T[::-1])
    ]
    packed = [_pack_bits(part) for part in segments]
    offsets = np.cumsum([64, *map(len, packed[:-1])])
    header = np.zeros(16, "<u4")
    header[: len(packed) + 1] = [len(packed), *offsets]
    return header.tobytes() + b"".join(packed)


def _pack_bits(data: bytes) -> bytes:
    """Encode bytes as literal runs alone, which is valid though not short."""
    parts = [bytes([len(data[i : i + 128]) - 1]) + data[i : i + 128] for i in range(0, len(data), 128)]
    packed = b"".join(parts)
    return packed + b"\0" * (len(packed) % 2)


def make(
    path: Path,
    frames: np.ndarray,
    encoding: str = "explicit",
    photometric: str | None = None,
    bits_stored: int | None = None,
    planar: int = 0,
    regions: list[Dataset] | None = None,
    pixel_data: bytes | None = None,
    fragments: list[bytes] | None = None,
    has_table: bool = True,
    **attributes: Any,
) -> Path:
    """Write an ultrasound object.

    Args:
        path: of the file.
        frames: (T, H, W) or (T, H, W, 3), uint8, uint16 or int16: the values as stored.
        encoding: a key of `SYNTAXES`.
        photometric: MONOCHROME2 or RGB where None.
        bits_stored: those of the type where None.
        planar: 1: colours one plane after the other.
        regions: ultrasound regions; None: one of 2-D tissue, all of the image. Empty: none.
        pixel_data: the value of the pixel data as it is, instead of encoded frames.
        fragments: encoded frames, instead of `frames`.
        has_table: write an offset table.
        attributes: of the header, in place of those made here; None takes one out.
    """
    is_colour = frames.ndim == 4
    num_frames, height, width = frames.shape[:3]
    bits = frames.dtype.itemsize * 8
    stored = bits_stored or bits
    if regions is None:
        regions = [tissue_region(0, 0, width - 1, height - 1, (0.1, 0.1))]
    uid = f"1.2.826.0.1.3680043.10.1.{zlib.crc32(f'{path.name} {encoding}'.encode())}"
    header = dataset(
        **{
            "SOPClassUID": US_CLIP if num_frames > 1 else US_IMAGE,
            "SOPInstanceUID": uid,
            "StudyInstanceUID": "1.2.826.0.1.3680043.10.2",
            "SeriesInstanceUID": "1.2.826.0.1.3680043.10.3",
            "Modality": "US",
            "PatientName": "Mustermann^Erika",
            "PatientID": "PID-4711",
            "PatientSex": "F",
            "PatientAge": "061Y",
            "StudyDate": "20240229",
            "FrameTime": 25 if num_frames > 1 else None,
            "SequenceOfUltrasoundRegions": regions or None,
            "SamplesPerPixel": 3 if is_colour else 1,
            "PhotometricInterpretation": photometric or ("RGB" if is_colour else "MONOCHROME2"),
            "PlanarConfiguration": planar if is_colour else None,
            "NumberOfFrames": num_frames if num_frames > 1 else None,
            "Rows": height,
            "Columns": width,
            "BitsAllocated": bits,
            "BitsStored": stored,
            "HighBit": stored - 1,
            "PixelRepresentation": int(frames.dtype.kind == "i"),
            **attributes,
        }
    )
    is_little, is_implicit = encoding != "big_endian", encoding == "implicit"
    if encoding in ("implicit", "explicit", "deflated", "big_endian"):
        if pixel_data is None:
            values = np.moveaxis(frames, -1, 1) if planar and is_colour else frames
            pixel_data = values.astype(values.dtype.newbyteorder("<" if is_little else ">")).tobytes()
            pixel_data += b"\0" * (len(pixel_data) % 2)
            if not is_little and bits == 8:  # bytes swapped in their words
                pixel_data = np.frombuffer(pixel_data, ">u2").astype("<u2").tobytes()
        vr = "OW"
    else:
        if pixel_data is None:
            fragments = fragments or [compressed(frame, encoding, stored) for frame in frames]
            pixel_data = encapsulate(fragments, has_bot=has_table)
        vr = "OB"
    header.add_new(0x7FE00010, vr, pixel_data)
    if vr == "OB":
        header["PixelData"].is_undefined_length = True
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = header.SOPClassUID
    meta.MediaStorageSOPInstanceUID = uid
    meta.TransferSyntaxUID = pydicom.uid.UID(SYNTAXES[encoding])
    header.file_meta = meta
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, implicit_vr=is_implicit, little_endian=is_little, enforce_file_format=True)
    return path


@pytest.fixture
def make_ultrasound(tmp_path: Path) -> MakeUltrasound:
    """Return a function that writes an ultrasound object into the test's folder: `make_ultrasound(frames, ..., name="clip.dcm")`."""

    def build(frames: np.ndarray, encoding: str = "explicit", name: str = "clip.dcm", **options: Any) -> Path:
        return make(tmp_path / name, frames, encoding, **options)

    return build


def real_file(name: str) -> Path:
    """Find a real ultrasound file of pydicom or PyPI pydicom-data on the disk; skip the test if it is missing."""
    spec = importlib.util.find_spec("data_store")
    folders = [Path(place) / "data" for place in spec.submodule_search_locations or []] if spec else []
    for folder in (Path(pydicom.__file__).parent / "data" / "test_files", *folders):
        if (folder / name).is_file():
            return folder / name
    pytest.skip(f"{name} (PyPI pydicom-data) is not installed")
