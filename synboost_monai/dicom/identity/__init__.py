"""What in a DICOM header or its pixels names a person, and how it is taken out."""
