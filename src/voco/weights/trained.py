"""From a hand-over to what a network was fine-tuned for."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from voco.backbone import Backbone
from voco.config import parse
from voco.errors import WeightsError
from voco.tasks.classification import Classification, ClassificationConfig
from voco.tasks.segmentation import Segmentation, SegmentationConfig
from voco.weights.handover import Handover
from voco.weights.loading import load_weights, task_tensors
from voco.weights.starting import untrained


def build_task(
    handover: Handover, backbone: Backbone, source: Path
) -> Segmentation | Classification:
    """What the network was fine-tuned for, around a backbone; nothing is loaded yet.

    Args:
        handover: Of a run of fine-tuning.
        backbone: Of that run.
        source: Where the hand-over is from; named in errors.

    Raises:
        ConfigError: If the settings of the task are not valid.
    """
    settings = handover.task or {}
    if handover.kind == "segmentation":
        return parse(SegmentationConfig, settings, f"{source}: task").build(backbone)
    config = parse(ClassificationConfig, settings, f"{source}: task")
    return config.build(backbone, len(handover.classes))


def fill(
    handover: Handover,
    backbone: Backbone,
    task: Segmentation | Classification | None,
    tensors: Mapping[str, Tensor],
    source: Path,
) -> None:
    """Copy the tensors of a run into what was built from its hand-over.

    Raises:
        WeightsError: If a tensor is missing, unknown or unfit; nothing is then changed, but that
            a classifier may miss what its backbone got.
    """
    load_weights(backbone, tensors, new=untrained(backbone, handover.trained))
    if isinstance(task, Classification):
        load_classifier(task, tensors, source)


def load_classifier(
    task: Classification, tensors: Mapping[str, Tensor], source: Path
) -> Classification:
    """Copy the linear layer of a run into its task, and give the task back.

    Raises:
        WeightsError: If it is missing or does not fit.
    """
    mine = task_tensors(tensors)
    try:
        own = {name: mine[f"classifier.{name}"] for name in ("weight", "bias")}
        task.classifier.load_state_dict(own)
    except (KeyError, RuntimeError) as error:
        raise WeightsError(
            f"{source}: its classifier is missing or does not fit ({error})."
        ) from None
    return task
