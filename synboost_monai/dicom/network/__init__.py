"""Receiving and sending DICOM objects over the network."""
