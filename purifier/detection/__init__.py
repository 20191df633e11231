"""What a compromised model's own training set shows of its backdoor.

fitted = fit_detector(mdlm, samples, images)     # two passes a row; no labels, no clean data
fitted.detector                                  # `mdlm.detector` from now on: see `defend`
"""

from purifier.detection.config import DetectConfig
from purifier.detection.fit import Fitted, Group, fit_detector
from purifier.mdlm.detector import DETECTOR_FILE, LOUD, Detector, read_detector

VERSION = 2
"""Rises with every change of this package that changes what is found or masked."""

__all__ = [
    "DETECTOR_FILE",
    "LOUD",
    "VERSION",
    "DetectConfig",
    "Detector",
    "Fitted",
    "Group",
    "fit_detector",
    "read_detector",
]
