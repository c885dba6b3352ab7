"""SynBoost-MONAI: synthetic echocardiograms that make prompted segmentation better.

Importing the package is cheap; each module imports what it needs.
"""

__version__ = "0.1.0"
