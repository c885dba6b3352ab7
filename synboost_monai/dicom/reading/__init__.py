"""Read DICOM files that nobody vouches for: headers, pixel data, regions and whole folders."""
