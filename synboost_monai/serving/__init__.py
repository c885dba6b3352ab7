"""Give access to a trained bundle: by MONAI Label, by the demo, as an exported network or as a package."""
