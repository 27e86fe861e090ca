"""What became of each job: one small file each, written when the job ends."""

import json
from pathlib import Path
from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from voco.config import Config, parse
from voco.data.store import write_atomically
from voco.errors import ConfigError, DataError

Status = Literal["done", "failed", "interrupted"]


class Outcome(Config):
    """What became of a job."""

    status: Status
    """``interrupted``: stopped in good order, to be gone on with."""
    settings: str
    """Hash of the recipe, and of the jobs that it builds on."""
    attempts: PositiveInt = 1
    """How often it was begun anew because it had failed."""
    reason: str = ""
    """Why it failed."""
    seconds: NonNegativeFloat = 0.0
    """Wall time, over all interruptions."""
    cpu_seconds: NonNegativeFloat = 0.0
    """Time of all its processes on all cores, over all interruptions."""
    training_seconds: NonNegativeFloat | None = None
    """Of the training loop alone, as its log has it."""
    memory_bytes: NonNegativeInt | None = None
    """Most memory in training: of the GPU where there is one, else of the process."""
    steps: NonNegativeInt | None = None
    """Optimizer steps; for a budget how many fit in."""
    cases: NonNegativeInt | None = None
    """Cases learnt from."""
    loaded_share: float | None = None
    """Share of the encoder's parameters that came from the weights."""
    loaded_tensors: NonNegativeInt | None = None
    """Tensors of the network that came from the weights."""
    device: str = ""
    """What it ran on."""
    host: str = ""
    """Name of the machine."""


class Outcomes:
    """The outcomes in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def read(self, job: str) -> Outcome | None:
        """What became of a job; ``None`` if it has not ended yet.

        Raises:
            DataError: If the file is damaged.
        """
        file = self._file(job)
        try:
            return parse(Outcome, json.loads(file.read_text(encoding="utf-8")), str(file))
        except FileNotFoundError:
            return None
        except (json.JSONDecodeError, ConfigError) as error:
            raise DataError(f"{file}: damaged ({error}). Delete it to run the job anew.") from None

    def write(self, job: str, outcome: Outcome) -> None:
        """Say what became of a job, whole or not at all."""
        write_atomically(self._file(job), f"{outcome.model_dump_json(indent=2)}\n".encode())

    def _file(self, job: str) -> Path:
        return self._folder / f"{job}.json"
