"""Write DICOM objects: images, clips, segmentations, overlays and structured reports."""
