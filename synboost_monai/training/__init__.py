"""Provide the dataset, losses and Ignite handlers that trainings use. Names load on first use."""

from synboost_monai.distributed import distribute as distribute
from synboost_monai.distributed import start_distributed as start_distributed
from synboost_monai.lazy import on_first_use

_MODULE_OF = {
    "DistillationLoss": "distillation",
    "DistillationPrepareBatch": "distillation",
    "EarlyStop": "schedules",
    "EpochSeed": "resume",
    "ExponentialMovingAverage": "averages",
    "FeatureOptions": "feature_cache",
    "GradientClip": "schedules",
    "HandlerGroup": "schedules",
    "HoldFolder": "resume",
    "KeepInputs": "resume",
    "LazySummaryWriter": "progress",
    "LearningRateSchedule": "schedules",
    "LogToFile": "progress",
    "PictureGrid": "pictures",
    "Progress": "progress",
    "Resume": "resume",
    "SegmentationPictures": "pictures",
    "WriteHistory": "history",
    "WriteWeights": "weights",
    "cache_features": "feature_cache",
    "num_epochs": "schedules",
    "overlay": "pictures",
    "training_dataset": "dataset",
}
"""Public name -> module of this folder that defines it."""

__all__ = sorted([*_MODULE_OF, "distribute", "start_distributed"])
__getattr__, __dir__ = on_first_use(__name__, _MODULE_OF)
