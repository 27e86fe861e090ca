"""What networks are fine-tuned for, one file each; chosen by ``name``."""

from typing import Annotated

from pydantic import Field

from voco.tasks.classification import ClassificationConfig
from voco.tasks.segmentation import SegmentationConfig

TaskSettings = Annotated[SegmentationConfig | ClassificationConfig, Field(discriminator="name")]
"""Settings of any task."""
