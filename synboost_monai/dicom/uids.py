"""Name transfer syntaxes and SOP classes (DICOM PS3.6, annex A)."""

from __future__ import annotations

IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
"""Transfer syntaxes Implicit and Explicit VR Little Endian."""
DEFLATED, BIG_ENDIAN = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
"""Transfer syntaxes Deflated Explicit VR Little Endian, which compresses the whole data set, and Explicit VR Big Endian."""
NATIVE_SYNTAXES = frozenset({IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN})
"""Transfer syntaxes whose pixel data are one block, not fragments."""
JPEG_BASELINE, JPEG_EXTENDED = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"
JPEG_LOSSLESS = frozenset({"1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"})
JPEG_LS = frozenset({"1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"})
JPEG_2000 = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 201, 202, 203))
RLE = "1.2.840.10008.1.2.5"
ENCAPSULATED_UNCOMPRESSED = "1.2.840.10008.1.2.1.98"
DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"

ULTRASOUND_IMAGE, ULTRASOUND_CLIP = "1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.3.1"
"""SOP classes Ultrasound Image and Ultrasound Multi-frame Image."""
ULTRASOUND_CLIPS = (ULTRASOUND_CLIP, "1.2.840.10008.5.1.4.1.1.3")
"""The class of clips, and its form before 1997, retired: references to them name the frame."""
ULTRASOUND_CLASSES = frozenset({ULTRASOUND_IMAGE, "1.2.840.10008.5.1.4.1.1.6", *ULTRASOUND_CLIPS})
"""SOP classes that are segmented, with the retired ones."""
MULTI_FRAME_CAPTURES = frozenset(f"1.2.840.10008.5.1.4.1.1.7.{n}" for n in (2, 4))
"""SOP classes Multi-frame Grayscale Byte and True Color Secondary Capture Image, in which some archives and exports keep clips;
segmented if the modality is US."""
