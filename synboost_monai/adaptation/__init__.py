"""Adapt a segmenter to images that nobody labelled."""
