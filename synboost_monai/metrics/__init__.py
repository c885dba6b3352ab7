"""Numbers that say how good a segmentation is."""
