"""Find and remove what names a person in DICOM headers and pixels."""
