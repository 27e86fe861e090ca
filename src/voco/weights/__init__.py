"""The hand-over: a trained network on disk, and loading with an account of every tensor.

``weights.safetensors`` holds the trained tensors under the names that the library's network class
gives them. ``handover.json`` beside it says what they are, how and on what they were trained, and
which preprocessing they expect. Nothing in either file is ever run as code.

Loading is all or nothing: every tensor of the file and of the network is accounted for before the
first one is copied, and one that does not fit stops it (:class:`Accounting`).
"""

from voco.weights.handover import (
    HANDOVER_FILE,
    TASK_PREFIX,
    WEIGHTS_FILE,
    Handover,
    TrainingData,
    export,
    read_handover,
)
from voco.weights.loading import (
    Accounting,
    Refusal,
    account,
    build_backbone,
    load,
    load_backbone,
    load_weights,
    task_tensors,
    transfer,
    untrained,
)
from voco.weights.reading import read_tensors, weights_digest

__all__ = [
    "HANDOVER_FILE",
    "TASK_PREFIX",
    "WEIGHTS_FILE",
    "Accounting",
    "Handover",
    "Refusal",
    "TrainingData",
    "account",
    "build_backbone",
    "export",
    "load",
    "load_backbone",
    "load_weights",
    "read_handover",
    "read_tensors",
    "task_tensors",
    "transfer",
    "untrained",
    "weights_digest",
]
