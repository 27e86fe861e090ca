"""AdamW, and a learning rate that warms up and then follows a cosine, in optimizer steps."""

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from voco.config import Config


class OptimizerConfig(Config):
    """AdamW with warm-up and cosine, counted in optimizer steps."""

    lr: PositiveFloat = 1e-4
    """Highest learning rate."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay; not applied to biases, norms and other vectors."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the two moments."""
    amsgrad: bool = False
    """Whether the second moment never falls."""
    warmup_steps: NonNegativeInt = 0
    """Optimizer steps from 0 to the highest learning rate."""
    final_share: float = Field(0.0, ge=0, le=1)
    """Learning rate at the end, as a share of the highest."""
    clip_norm: PositiveFloat | None = 1.0
    """Largest norm of the gradient; ``None`` does not clip."""
    accumulate: PositiveInt = 1
    """Micro-batches into which the batch of a step is split to save memory."""
