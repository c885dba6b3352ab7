"""Provide the dataset, losses and Ignite handlers that trainings use. Names load on first use."""

from synboost_monai.lazy import on_first_use

_MODULE_OF = {
    "EarlyStop": "handlers",
    "EpochSeed": "handlers",
    "ExponentialMovingAverage": "averages",
    "GradientClip": "handlers",
    "HandlerGroup": "handlers",
    "HoldFolder": "handlers",
    "KeepInputs": "handlers",
    "LazySummaryWriter": "handlers",
    "LearningRateSchedule": "handlers",
    "LogToFile": "handlers",
    "PictureGrid": "handlers",
    "Progress": "handlers",
    "Resume": "handlers",
    "SegmentationPictures": "handlers",
    "WriteHistory": "history",
    "WriteWeights": "handlers",
    "cache_features": "feature_cache",
    "distribute": "handlers",
    "is_main_process": "handlers",
    "num_epochs": "handlers",
    "num_processes": "handlers",
    "overlay": "handlers",
    "start_distributed": "handlers",
    "training_dataset": "dataset",
}
"""Public name -> module of this folder that defines it."""

__all__ = sorted(_MODULE_OF)
__getattr__, __dir__ = on_first_use(__name__, _MODULE_OF)
