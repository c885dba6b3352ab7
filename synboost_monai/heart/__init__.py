"""Measure the heart in a label map (outlines, landmarks, volumes, clinical measures) and judge how far to trust the result."""
