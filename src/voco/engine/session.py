"""One training session: take up the state, train, keep log and checkpoints, stop when asked."""

import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

from lightning_fabric import Fabric
from torch.optim import AdamW

from voco.config import read_yaml
from voco.engine.checkpoint import Checkpoints
from voco.engine.compiling import compiled
from voco.engine.interruption import Interruption
from voco.engine.log import Log, read_log
from voco.engine.loop import Hook, Record, fit
from voco.engine.run import Run, first_does
from voco.engine.settings import TrainingConfig
from voco.engine.trackers import open_trackers
from voco.errors import CheckpointError, Interrupted
from voco.task import Task


def train(
    fabric: Fabric,
    run: Run,
    task: Task[Any],
    optimizer: AdamW,
    batches: Callable[[int], Iterable[Any]],
    config: TrainingConfig,
    *,
    what: str = "train",
    hooks: Sequence[Hook] = (),
) -> None:
    """Train to the last step, from the last checkpoint if there is one. All processes call this.

    Args:
        fabric: Launched.
        run: The run folder.
        task: What to train; ends on the device, with the weights of the last step.
        optimizer: Over the task's parameters.
        batches: Gives, for a step, the micro-batches from that step on.
        config: The recipe.
        what: A word for the progress line.
        hooks: Called after each step, before the log and the checkpoint of that step.

    Raises:
        TrainingError: If a loss or a gradient is not finite.
        CheckpointError: If all checkpoints are damaged, or do not fit.
        Interrupted: After SIGTERM or Ctrl-C, when the step is done and a checkpoint written.
    """
    task.to(fabric.device)
    checkpoints = Checkpoints(run.checkpoints, run.digest, config.keep_checkpoints)
    done = _take_up(fabric, run, checkpoints, task, optimizer, config)
    if done == config.steps:
        return
    volumes = config.batch_size * fabric.world_size
    trackers = None
    if fabric.is_global_zero:
        trackers = open_trackers(config.trackers, run.path, config, done)
    log = Log(fabric, run.path, config.log_every, volumes, done, trackers)
    stream = iter(batches(done))
    passes = compiled(task) if config.compiled else nullcontext()
    try:
        with passes, Interruption() as interruption:
            keeper = Keeper(fabric, checkpoints, task, optimizer, config, interruption)
            fit(
                fabric,
                task,
                optimizer,
                stream,
                config.optimizer,
                steps=range(done, config.steps),
                seed=config.seed,
                what=what,
                hooks=(*hooks, log, keeper),
            )
    finally:
        # Loader processes ignore signals, so an interpreter that ends before they do would wait
        # for them for ever: they are sent home here, whatever happened.
        if isinstance(stream, Generator):
            stream.close()
        log.close()


class Keeper:
    """A hook that writes checkpoints when they are due, or when training is asked to stop."""

    def __init__(
        self,
        fabric: Fabric,
        checkpoints: Checkpoints,
        task: Task[Any],
        optimizer: AdamW,
        config: TrainingConfig,
        interruption: Interruption,
    ) -> None:
        self._fabric, self._checkpoints, self._config = fabric, checkpoints, config
        self._task, self._optimizer, self._interruption = task, optimizer, interruption

    def __call__(self, record: Record) -> None:
        """Write a checkpoint, if one is due.

        Raises:
            Interrupted: If a signal came; the checkpoint is written before.
        """
        stop = self._interruption.requested()
        if not (stop or record.due(self._config.checkpoint_every)):
            return
        record.ledger.settle()
        first_does(self._fabric, lambda: self._save(record.done))
        if stop:
            raise Interrupted(
                f"stopped by {stop.name} after step {record.done} of {record.total}; the state is "
                f"in {self._checkpoints.folder}. The same command with --resume goes on.",
                128 + stop,
            )

    def _save(self, done: int) -> None:
        scaler = self._fabric.strategy.precision.state_dict()
        self._checkpoints.save(done, self._task, self._optimizer, scaler)


def _take_up(
    fabric: Fabric,
    run: Run,
    checkpoints: Checkpoints,
    task: Task[Any],
    optimizer: AdamW,
    config: TrainingConfig,
) -> int:
    """Load the last sound checkpoint; returns the number of steps that are done."""

    def find() -> int:
        checkpoints.folder.mkdir(exist_ok=True)
        checkpoints.clean()
        found = checkpoints.newest()
        if found is None:
            _check_nothing_lost(run)
        return found or 0

    done = first_does(fabric, find)
    if done:
        scaler = checkpoints.load(done, task, optimizer)
        fabric.strategy.precision.load_state_dict(scaler)
        if fabric.is_global_zero:
            text = f"voco: going on from step {done} of {config.steps}."
            print(text, file=sys.stderr)  # noqa: T201
    return done


def _check_nothing_lost(run: Run) -> None:
    """Without a checkpoint, the log must not tell of one: nobody is to start anew unawares."""
    lines = read_log(run.log)
    every = read_yaml(run.path / "recipe.yaml")["checkpoint_every"]
    if lines and lines[-1]["step"] > every:
        raise CheckpointError(
            f"{run.path}: the log goes to step {lines[-1]['step']}, but no checkpoint is there. "
            "Bring the checkpoints back, or start anew with --overwrite."
        )
