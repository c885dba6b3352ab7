"""Turn a folder of a hospital's DICOM files into segmentations, volumes and ejection fractions, with a line for every file."""
