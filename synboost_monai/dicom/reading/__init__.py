"""Reading DICOM files that nobody vouches for: headers, pixel data, regions, whole folders."""
