"""Receive and send DICOM objects over the network."""
