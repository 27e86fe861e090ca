"""voco: self-supervised pre-training of 3D medical image networks.

The commands as functions, and :func:`load` for a network out of a run::

    import voco

    voco.prepare(["scans/"], "store", spacing_mm=(1.5, 1.5, 1.5))
    network = voco.load("run/")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from voco.comparison.run import compare as compare
    from voco.comparison.settings import ComparisonConfig as ComparisonConfig
    from voco.recipes import EmbedConfig as EmbedConfig
    from voco.recipes import FinetuneConfig as FinetuneConfig
    from voco.recipes import PretrainConfig as PretrainConfig
    from voco.recipes import ProbeConfig as ProbeConfig
    from voco.weights import load as load
    from voco.workflows.embed import embed as embed
    from voco.workflows.evaluate import evaluate as evaluate
    from voco.workflows.export import export as export
    from voco.workflows.finetune import finetune as finetune
    from voco.workflows.inspect import inspect as inspect
    from voco.workflows.leaks import leaks as leaks
    from voco.workflows.phantom import phantom as phantom
    from voco.workflows.predict import predict as predict
    from voco.workflows.prepare import prepare as prepare
    from voco.workflows.pretrain import pretrain as pretrain
    from voco.workflows.probe import probe as probe
    from voco.workflows.report import report as report
    from voco.workflows.verify import verify as verify

__version__ = "0.1.0"

_HOMES = {
    "ComparisonConfig": "voco.comparison.settings",
    "EmbedConfig": "voco.recipes",
    "FinetuneConfig": "voco.recipes",
    "PretrainConfig": "voco.recipes",
    "ProbeConfig": "voco.recipes",
    "compare": "voco.comparison.run",
    "embed": "voco.workflows.embed",
    "evaluate": "voco.workflows.evaluate",
    "export": "voco.workflows.export",
    "finetune": "voco.workflows.finetune",
    "inspect": "voco.workflows.inspect",
    "leaks": "voco.workflows.leaks",
    "load": "voco.weights",
    "phantom": "voco.workflows.phantom",
    "predict": "voco.workflows.predict",
    "prepare": "voco.workflows.prepare",
    "pretrain": "voco.workflows.pretrain",
    "probe": "voco.workflows.probe",
    "report": "voco.workflows.report",
    "verify": "voco.workflows.verify",
}

__all__ = [*_HOMES, "backbones", "methods"]  # noqa: PLE0604 (names, all of them)


def __getattr__(name: str) -> Any:  # noqa: ANN401 (any of the names above)
    """Import on first use, so that ``import voco`` costs nothing."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in {"backbones", "methods"}:
        return importlib.import_module(f"voco.{name}")
    raise AttributeError(f"module 'voco' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
