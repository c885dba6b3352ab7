"""What a label map says of a heart: outlines, landmarks, volumes, measures, and how far to trust them."""
