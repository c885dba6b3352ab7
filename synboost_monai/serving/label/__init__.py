"""MONAI Label with the segmenters' bundles: an app folder that is a copy, a server on this machine alone, doubt as active learning."""
