"""Doors to a trained bundle: MONAI Label, the demo, exported networks and packages."""
