"""Where the figures of a run are shown while it trains: TensorBoard, MLflow, Weights & Biases.

A tracker only shows: ``log.jsonl`` is the record. One that fails (a full disk, a server that does
not answer, a package that breaks) is told once and left out, and the training goes on.

MLflow writes into ``mlflow.db`` in the run folder, or to ``MLFLOW_TRACKING_URI`` if that is set;
the experiment is ``MLFLOW_EXPERIMENT_NAME``, or ``voco``. Weights & Biases writes into ``wandb/``
in the run folder and sends nothing, unless ``WANDB_MODE`` is ``online``; the project is
``WANDB_PROJECT``, or ``voco``. All else is up to these programs' own variables.

A run that goes on appears as the same run: ``trackers.json`` keeps what they call it.
"""

import json
import os
import sys
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from voco.config import Config, flat
from voco.data.store import write_atomically
from voco.extras import needed

TrackerName = Literal["tensorboard", "mlflow", "wandb"]
"""What figures can be shown by."""

IDS_FILE = "trackers.json"
"""In the run folder: by which name each tracker knows the run."""

_PARAMETERS_AT_ONCE = 100
"""MLflow takes so many in one call."""


class Tracker(ABC):
    """A program that shows figures of a run. Any method may raise anything."""

    @abstractmethod
    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Show figures by name, after so many steps."""

    @abstractmethod
    def close(self, *, finished: bool) -> None:
        """Write out what is held back, and say whether the run is finished or was stopped."""


class Trackers:
    """The trackers of a run; one that fails is told and left out.

    Args:
        makers: By name, what opens each of them.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Tracker]]) -> None:
        self._open: dict[str, Tracker] = {}
        for name, make in makers.items():
            self._guarded(name, lambda name=name, make=make: self._open.update({name: make()}))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Show figures by name, after so many steps."""
        for name, tracker in list(self._open.items()):
            self._guarded(name, lambda tracker=tracker: tracker.log(step, figures))

    def close(self, *, finished: bool) -> None:
        """Close all of them; none shows anything afterwards."""
        for name, tracker in list(self._open.items()):
            self._guarded(name, lambda tracker=tracker: tracker.close(finished=finished))
        self._open.clear()

    def _guarded(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 (what only shows a run must not end it)
            self._open.pop(name, None)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            text = f"voco: the tracker {name} failed and is left out; the run goes on ({reason})."
            print(text, file=sys.stderr)  # noqa: T201


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Refuse to begin a run with a tracker that is not installed.

    Raises:
        UsageError: With the command that installs it.
    """
    for name in names:
        if name != "tensorboard":
            needed(name, name, f"The tracker {name}")
    if "mlflow" in names and not os.environ.get("MLFLOW_TRACKING_URI"):
        needed("sqlalchemy", "mlflow", "The tracker mlflow, without a server,")


def open_trackers(
    names: Sequence[TrackerName], folder: Path, config: Config, done: int
) -> Trackers:
    """The trackers of a run, at its beginning or where it goes on.

    Args:
        names: Which.
        folder: The run folder.
        config: The recipe; shown where a tracker has a place for it.
        done: Steps done; what was shown of later ones is taken back where that is possible.
    """
    makers: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(folder / "tensorboard", done),
        "mlflow": lambda: MLflow(folder, config),
        "wandb": lambda: WandB(folder, config),
    }
    return Trackers({name: makers[name] for name in dict.fromkeys(names)})


class TensorBoard(Tracker):
    """Event files in the run folder."""

    def __init__(self, folder: Path, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 (a second of imports)

        self._board: Any = SummaryWriter(str(folder), purge_step=done + 1 if done else None)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Write a scalar for each figure."""
        for name, value in figures.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()

    def close(self, *, finished: bool) -> None:
        """Close the file."""
        self._board.close()


class MLflow(Tracker):
    """A run of an MLflow experiment; never the process's active run, which is its user's."""

    def __init__(self, folder: Path, config: Config) -> None:
        # A server that does not answer is to hold the training up for seconds, not for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        self._mlflow = needed("mlflow", "mlflow", "The tracker mlflow")
        local = f"sqlite:///{folder.absolute() / 'mlflow.db'}"
        uri = os.environ.get("MLFLOW_TRACKING_URI") or local
        self._client: Any = self._mlflow.MlflowClient(tracking_uri=uri)
        known = _known(folder, "mlflow")
        if known.get("uri") == uri:
            self._run: str = known["run"]
            self._client.update_run(self._run, status="RUNNING")
            return
        place = (folder.absolute() / "mlflow").as_uri() if uri == local else None
        self._run = self._begin(place, folder, config)
        _keep(folder, "mlflow", {"uri": uri, "run": self._run})

    def _begin(self, artifacts: str | None, folder: Path, config: Config) -> str:
        """Start a run, with the recipe as its parameters."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "voco"
        experiment = self._client.get_experiment_by_name(name)
        number = (
            experiment.experiment_id
            if experiment
            else self._client.create_experiment(name, artifact_location=artifacts)
        )
        run = self._client.create_run(number, run_name=folder.absolute().name).info.run_id
        known = [
            self._mlflow.entities.Param(key, str(value))
            for key, value in flat(config.model_dump(mode="json"))
        ]
        for first in range(0, len(known), _PARAMETERS_AT_ONCE):
            self._client.log_batch(run, params=known[first : first + _PARAMETERS_AT_ONCE])
        return run

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Write a metric for each figure."""
        now = round(time.time() * 1000)
        metric = self._mlflow.entities.Metric
        metrics = [metric(name, float(value), now, step) for name, value in figures.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self, *, finished: bool) -> None:
        """Say how the run ended."""
        self._client.set_terminated(self._run, "FINISHED" if finished else "KILLED")


class WandB(Tracker):
    """A run of Weights & Biases."""

    def __init__(self, folder: Path, config: Config) -> None:
        wandb = needed("wandb", "wandb", "The tracker wandb")
        known = _known(folder, "wandb") or {"run": uuid.uuid4().hex[:8]}
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "voco",
            dir=str(folder.absolute()),
            id=known["run"],
            name=folder.absolute().name,
            config=config.model_dump(mode="json"),
            allow_val_change=True,
            mode=os.environ.get("WANDB_MODE") or "offline",
            resume="allow",
            # The figures are sent, and nothing else of this machine: no code, no screen.
            settings=wandb.Settings(
                console="off", disable_git=True, disable_code=True, silent=True
            ),
        )
        _keep(folder, "wandb", known)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Write the figures of a step."""
        self._run.log(dict(figures), step=step)

    def close(self, *, finished: bool) -> None:
        """Say how the run ended."""
        self._run.finish(exit_code=0 if finished else 1)


def _known(folder: Path, tracker: str) -> dict[str, str]:
    """What a tracker calls the run; empty at its beginning."""
    return _ids(folder / IDS_FILE).get(tracker, {})


def _keep(folder: Path, tracker: str, known: dict[str, str]) -> None:
    content = {**_ids(folder / IDS_FILE), tracker: known}
    write_atomically(folder / IDS_FILE, json.dumps(content, indent=2).encode())


def _ids(file: Path) -> dict[str, dict[str, str]]:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
