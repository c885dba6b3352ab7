"""A hospital's studies: a folder of DICOM files in; segmentations, volumes and ejection fractions out, and a line for every file."""
