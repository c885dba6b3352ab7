"""Serve copies of the segmenters' bundles by MONAI Label, on this machine alone by default, with doubt as active learning."""
