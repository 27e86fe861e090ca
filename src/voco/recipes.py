"""Recipes: one root object of settings per command that trains."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from voco.backbones import BackboneSettings
from voco.config import Config
from voco.data.patches import Fit
from voco.data.windows import WindowsConfig
from voco.embedding import Levels
from voco.engine.settings import TrainingConfig
from voco.methods import MethodSettings
from voco.shapes import Shape3
from voco.tasks import TaskSettings


class ProbeConfig(Config):
    """What frozen features are asked, and of which labelled cases: ``voco probe``."""

    of: Literal["voxels", "cases"] = "voxels"
    """``voxels``: which structure a voxel belongs to, from the features at its place in all levels
    of the pyramid. ``cases``: which class a volume has, from the average of the levels that the
    backbone names for embeddings."""
    window: Shape3 | None = None
    """Voxels of what the network sees at once, along x, y and z: of a sliding window for
    ``voxels``, of the whole volume for ``cases``. ``None`` is the network's own size where it takes
    no other, and else 96 x 96 x 96. What fine-tuning will use is a good choice."""
    overlap: float = Field(default=0.25, ge=0, lt=1)
    """Of neighbouring windows, as a share of their side; a voxel is read in the window in whose
    middle it lies nearest. ``voxels`` only."""
    fit: Fit = "resize"
    """How a whole volume is brought to ``window``, ``cases`` only. ``resize``: resampled, aspect
    ignored. ``crop``: its middle, padded where it is smaller."""
    voxels: PositiveInt = 32
    """Voxels that are drawn of each structure of a case, and of what belongs to none (inside the
    box that holds the body, where the store knows it)."""
    labels: int | float | None = None
    """How many labelled cases to learn from: a count, or a share below 1; ``None`` uses all."""
    labels_seed: NonNegativeInt = 0
    """Chooses those cases. Nested: the first 5 are among the first 10."""
    validation: int | float = 0.2
    """Cases that are asked about, a count or a share, when the store names no split
    ``validation``. No case, and no group, is both learnt from and asked about."""
    split_seed: NonNegativeInt = 0
    """Chooses those cases."""
    seed: NonNegativeInt = 0
    """Chooses the voxels."""
    ridge: PositiveFloat = 1.0
    """Penalty of the linear probe: weight of half the sum of the squared coefficients against the
    sum of the rows' cross-entropies (scikit-learn's 1 / C, and its default)."""
    iterations: PositiveInt = 200
    """At most so many of L-BFGS in the linear probe."""
    neighbours: PositiveInt = 20
    """How many rows vote in the nearest-neighbour probe (DINO: 20)."""
    temperature: PositiveFloat = 0.07
    """Of those votes (Wu et al. 2018 and DINO: 0.07)."""


class EmbedConfig(Config):
    """What a feature vector is of: ``voco embed``."""

    of: Literal["scans", "crops"] = "scans"
    """``crops``: a vector for each crop of a grid that covers the body. ``scans``: one for each
    scan, the mean of those of its crops."""
    window: Shape3 | None = None
    """Voxels of a crop along x, y and z. ``None`` is the network's own size where it takes no
    other, else what the weights were trained on, else 96 x 96 x 96."""
    overlap: float = Field(default=0.0, ge=0, lt=1)
    """Of neighbouring crops, as a share of their side. The last along each axis ends where the
    body does, so it overlaps the one before it more."""
    levels: Levels = "backbone"
    """Which levels of the encoder are averaged over space and joined: those that the backbone
    names for embeddings, or the last. Of weights that trained a transformer alone, it is the
    transformer's last map."""
    crops_at_once: PositiveInt = 4
    """Crops that pass through the network together."""


class PretrainConfig(TrainingConfig):
    """A recipe for ``voco pretrain``."""

    method: MethodSettings
    """The pre-training method, chosen by ``name``."""
    backbone: BackboneSettings
    """The network, chosen by ``name``."""
    windows: WindowsConfig = WindowsConfig()
    """How windows are cut out of the volumes."""
    holdout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the cases (whole groups, chosen by the seed) that are only looked at: health
    figures on them are logged as ``holdout``. Cases of the splits ``validation`` and ``test``
    are never trained on."""
    probe: ProbeConfig = ProbeConfig()
    """What is asked of the features while they are trained, where labelled data is given for it.
    The training does not depend on it."""
    probe_every: NonNegativeInt = 0
    """Steps between two probes; 0 probes at the end only."""


class FinetuneConfig(TrainingConfig):
    """A recipe for ``voco finetune``."""

    task: TaskSettings
    """Segmentation or classification, chosen by ``name``."""
    backbone: BackboneSettings
    """The network; the weights' own must be the same."""
    labels: int | float | None = None
    """How many labelled training cases to use: a count, or a share below 1; ``None`` uses all."""
    labels_seed: NonNegativeInt | None = None
    """Chooses those cases; ``None`` takes ``seed``. Nested: the first 5 are among the first 10."""
    validation: int | float = 0.2
    """Cases kept for validation, a count or a share, when the store names no such split."""
    split_seed: NonNegativeInt = 0
    """Chooses the validation cases; kept apart from ``seed`` so that all seeds share them."""
    expected_share: float = Field(default=0.9, ge=0, le=1)
    """Least share of the network's encoder that the weights must fill, else the run stops. Of
    weights that trained a transformer alone (``mae3d``, ``simmim``), of that."""
    transfer: Literal["all", "encoder"] = "all"
    """What is taken over from the weights: ``all`` that they trained but the output layer, or the
    ``encoder`` alone, also where a decoder was trained."""
    encoder_lr_share: float = Field(default=1.0, ge=0)
    """Learning rate of the encoder relative to the rest; 0 freezes it."""
    workers: NonNegativeInt = 2
    """Loader processes, at most one per core; 0 loads in the training process. Results do not
    depend on it."""
