"""The hand-over: a trained network on disk, and loading with an account of every tensor.

``weights.safetensors`` holds the trained tensors under the names that the library's network class
gives them. ``handover.json`` beside it says what they are, how and on what they were trained, and
which preprocessing they expect. Nothing in either file is ever run as code.

Weights of others are recognised by the names of their tensors (:mod:`voco.weights.families`) and
brought under ours.

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
    seen_before,
)
from voco.weights.loading import (
    Accounting,
    Refusal,
    account,
    load_weights,
    task_tensors,
)
from voco.weights.passport import Passport, passport
from voco.weights.reading import read_tensors, weights_digest
from voco.weights.seen import Guarded, Recognised, Seen, recognise, seen_in
from voco.weights.starting import (
    build_backbone,
    load,
    load_backbone,
    record,
    resume_method,
    settled,
    transfer,
    untrained,
)

__all__ = [
    "HANDOVER_FILE",
    "TASK_PREFIX",
    "WEIGHTS_FILE",
    "Accounting",
    "Guarded",
    "Handover",
    "Passport",
    "Recognised",
    "Refusal",
    "Seen",
    "TrainingData",
    "account",
    "build_backbone",
    "export",
    "load",
    "load_backbone",
    "load_weights",
    "passport",
    "read_handover",
    "read_tensors",
    "recognise",
    "record",
    "resume_method",
    "seen_before",
    "seen_in",
    "settled",
    "task_tensors",
    "transfer",
    "untrained",
    "weights_digest",
]
