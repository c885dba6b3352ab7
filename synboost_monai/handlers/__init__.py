"""Ignite handlers: what happens around the steps of a training or an evaluation."""

from synboost_monai.handlers.ema import ExponentialMovingAverage
from synboost_monai.handlers.evaluation import CaseMetrics, WriteCalibration, WriteLabelMaps
from synboost_monai.handlers.history import WriteHistory
from synboost_monai.handlers.sensitivity import ManyPromptsInferer, PromptSensitivity, SensitivityPromptsd
from synboost_monai.handlers.training import (
    EarlyStop,
    EpochSeed,
    GradientClip,
    HandlerGroup,
    HoldFolder,
    KeepInputs,
    LazySummaryWriter,
    LearningRateSchedule,
    LogToFile,
    PictureGrid,
    Progress,
    Resume,
    SegmentationPictures,
    WriteWeights,
    distribute,
    is_main_process,
    num_epochs,
    num_processes,
    overlay,
    start_distributed,
)

__all__ = [
    "CaseMetrics",
    "EarlyStop",
    "EpochSeed",
    "ExponentialMovingAverage",
    "GradientClip",
    "HandlerGroup",
    "HoldFolder",
    "KeepInputs",
    "LazySummaryWriter",
    "LearningRateSchedule",
    "LogToFile",
    "ManyPromptsInferer",
    "PictureGrid",
    "Progress",
    "PromptSensitivity",
    "Resume",
    "SegmentationPictures",
    "SensitivityPromptsd",
    "WriteCalibration",
    "WriteHistory",
    "WriteLabelMaps",
    "WriteWeights",
    "distribute",
    "is_main_process",
    "num_epochs",
    "num_processes",
    "overlay",
    "start_distributed",
]
