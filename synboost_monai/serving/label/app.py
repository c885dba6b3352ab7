"""Extend MONAI Label's stock app for bundles by doubt as active learning and by trainings that suit few labels.

The app folder's main.py imports this module, in MONAI Label's environment alone.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.tasks.train.bundle import BundleTrainTask

from synboost_monai.bundle_run import as_literal
from synboost_monai.files import is_dicom
from synboost_monai.model_card import read_card
from synboost_monai.serving.label.need import most_in_need
from synboost_monai.transforms.postprocessing import DOUBT_KEY

logger = logging.getLogger(__name__)

PREFIX = "doubt_"
"""Prefix of the name of a bundle's strategy and scoring method; the bundle's name follows."""
NO_CHOICE = ("device", "model_filename")
"""Options of the stock app that viewers are not offered: they become code, and name files of this machine."""
SCORING_SECONDS = 20.0
"""Longest time for which a strategy segments images that have no score yet, before it chooses."""


class DoubtScoring(ScoringMethod):
    """Segment unlabelled images and keep in the datastore how much each needs a person.

    An image's info gets, under the method's name: predicted_dice, verdict, reasons (their codes), weights (the time they were written
    at), or `problem` if it could not be segmented. Scores by other weights do not count.

    Args:
        app: MONAI Label's app, which segments one image at a time.
        model: name of the bundle.
    """

    def __init__(self, app: MONAILabelApp, model: str) -> None:
        super().__init__(f"Doubt of {model}: verdict, and predicted Dice of the structures")
        self.app, self.model, self.key = app, model, f"{PREFIX}{model}"

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Score every unlabelled image that has no score by the present weights; `max_seconds` of the request ends it early."""
        start = time.monotonic()
        max_seconds = float(request.get("max_seconds") or float("inf"))
        image_ids = datastore.get_unlabeled_images()
        waiting = [image_id for image_id in image_ids if self.score(image_id, datastore) is None]
        executed = 0
        for image_id in waiting:
            if executed and time.monotonic() - start > max_seconds:
                break
            datastore.update_image_info(image_id, {self.key: self._examine(image_id)})
            executed += 1
        return {
            "total": len(image_ids),
            "skipped": len(image_ids) - len(waiting),
            "executed": executed,
            "latency": round(time.monotonic() - start, 3),
        }

    def score(self, image_id: str, datastore: Datastore) -> dict[str, Any] | None:
        """Return an image's score by the present weights, or None."""
        known = datastore.get_image_info(image_id).get(self.key)
        return known if known and known.get("weights") == self._weights() else None

    def _weights(self) -> int:
        """Return the time at which the weights in use were written."""
        return os.stat(self.app._infers[self.model].get_path()).st_mtime_ns

    def _examine(self, image_id: str) -> dict[str, Any]:
        """Segment one image, without writing the label map."""
        weights = self._weights()
        try:
            answer = self.app.infer({"model": self.model, "image": image_id, "skip_writer": True, "logging": "ERROR"})
        except (ValueError, FileNotFoundError, RuntimeError) as error:
            logger.warning(f"{image_id}: cannot be segmented ({error})")
            return {"problem": str(error), "weights": weights}
        doubt = answer["params"][DOUBT_KEY]
        codes = sorted({reason["code"] for reason in doubt["reasons"]})
        return {
            "predicted_dice": doubt["predicted_dice"],
            "verdict": doubt["verdict"],
            "reasons": codes,
            "weights": weights,
        }


class DoubtStrategy(Strategy):
    """Choose the unlabelled image that needs a person most: verdict review before accept, then the lowest predicted Dice.

    Images without a score by the present weights are segmented first, for at most `max_seconds` (`SCORING_SECONDS`); the next request
    goes on with the rest. Images that cannot be segmented come last.

    Args:
        scoring: scoring method of the same bundle.
    """

    def __init__(self, scoring: DoubtScoring) -> None:
        super().__init__(f"Images in most need of a person first, by the doubt of {scoring.model}")
        self.scoring = scoring

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        self.scoring({"max_seconds": request.get("max_seconds") or SCORING_SECONDS}, datastore)
        scores = {
            image_id: score
            for image_id in datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels"))
            if (score := self.scoring.score(image_id, datastore)) is not None
        }
        if not scores:
            return None
        image_id = most_in_need(scores)
        return {"id": image_id, "weight": 1 - (scores[image_id].get("predicted_dice") or 0.0)}


def may_replace_its_start(handler: Mapping[str, Any]) -> dict[str, Any]:
    """Return a training's handler that lets the training overwrite the weights that it starts from."""
    inputs = handler.get("inputs")
    return {**handler, "inputs": [i for i in inputs if i != "@init_checkpoint"]} if inputs else dict(handler)


class CorrectedLabelsTraining(BundleTrainTask):
    """Train a bundle on the corrected labels, from the weights that are served."""

    def config(self) -> dict[str, Any]:
        """Return the options that a viewer shows and sends back; the stock ones name devices, files and places for reports too."""
        return {"pretrained": True, "max_epochs": 50, "val_split": 0.2}

    def _fetch_datalist(self, request: Mapping[str, Any], datastore: Datastore) -> list[dict[str, str]]:
        items = super()._fetch_datalist(request, datastore)
        if not items:
            raise ValueError("there is no corrected label to train on; submit one first (label tag `final`)")
        return items

    def _partition_datalist(
        self, datalist: Sequence[dict[str, str]], request: Mapping[str, Any], shuffle: bool = False
    ) -> tuple[Sequence[dict[str, str]], Sequence[dict[str, str]]]:
        """Split the images into those to train on and those to choose the weights by; use all for both if there are too few."""
        training, validation = super()._partition_datalist(datalist, request, shuffle)
        if not training or not validation:
            logger.warning(
                f"{len(datalist)} labels: all of them are trained on, and the weights are chosen by the same ones"
            )
            return datalist, datalist
        return training, validation

    def _load_checkpoint(self, model_pytorch: str, pretrained: bool, train_handlers: list[Any]) -> None:
        """Keep the weights to start from; adapters and averages are then made of these, not of random ones."""
        self._init_checkpoint = model_pytorch if pretrained and os.path.exists(model_pytorch) else None

    def _update_overrides(self, overrides: dict[str, Any]) -> dict[str, Any]:
        """Change a training's overrides in place: names of files are text for MONAI's parser, never expressions."""
        handlers = self.const.key_train_handlers()  # key in the bundle's own config
        overrides |= {key: as_literal(value) for key, value in overrides.items() if key != handlers}
        overrides[handlers] = [may_replace_its_start(handler) for handler in overrides[handlers]]
        overrides["init_checkpoint"] = as_literal(self._init_checkpoint) if self._init_checkpoint else "$None"
        return overrides


def keep_to_the_weights(task: BundleInferTask) -> None:
    """Rebuild the network if it no longer fits the weights: a training leaves out the head for the view."""
    card = read_card(task.get_path())
    knows_view = card is not None and bool(card.facts.get("has_view_head"))
    if knows_view != (getattr(task.network, "view_head", None) is not None):
        task.bundle_config.parse()  # with the facts of the present weights
        task.network = task.bundle_config.get_parsed_content("network_def")
        task.clear_cache()


class EchoBundles:
    """Extend the stock app as a mixin before it; the guard in front of the server has checked all requests."""

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Segment an image of the datastore, by its name.

        The name is looked up here, since the stock app would take it for a path first. The label map of a DICOM image is NIfTI unless the
        request says otherwise.
        """
        path = (datastore or self.datastore()).get_image_uri(request.get("image") or "")  # type: ignore[attr-defined]
        if not path:
            raise ValueError(f"there is no image {request.get('image')!r} in the datastore")
        request = {**request, "image": path}
        task = self._infers.get(request.get("model"))  # type: ignore[attr-defined]
        for key, default in getattr(
            task, "displayable_configs", {}
        ).items():  # they become a part of the bundle's config
            request[key] = as_literal(request.get(key, default))
        if isinstance(task, BundleInferTask):
            keep_to_the_weights(task)
        if not request.get("result_extension") and is_dicom(path):
            request["result_extension"] = ".nii.gz"
        return super().infer(request, datastore)  # type: ignore[misc]

    def init_infers(self) -> dict[str, Any]:
        infers = super().init_infers()  # type: ignore[misc]
        for task in infers.values():
            for option in NO_CHOICE:
                task._config.pop(option, None)
            if isinstance(task, BundleInferTask):
                task.bundle_config["bundle_root"] = as_literal(task.bundle_path)
                task.load_strict = True  # otherwise it only warns if weights do not fit, and answers with noise
        return infers  # type: ignore[no-any-return]

    def init_trainers(self) -> dict[str, Any]:
        trainers = super().init_trainers()  # type: ignore[misc]
        return {name: CorrectedLabelsTraining(self.models[name], self.conf) for name in trainers}  # type: ignore[attr-defined]

    def init_scoring_methods(self) -> dict[str, Any]:
        methods = super().init_scoring_methods()  # type: ignore[misc]
        return {**methods, **{f"{PREFIX}{name}": DoubtScoring(self, name) for name in self._infers}}  # type: ignore[arg-type, attr-defined]

    def init_strategies(self) -> dict[str, Any]:
        strategies = super().init_strategies()  # type: ignore[misc]
        doubts = {f"{PREFIX}{name}": DoubtStrategy(DoubtScoring(self, name)) for name in self._infers}  # type: ignore[arg-type, attr-defined]
        return {**doubts, **strategies}
