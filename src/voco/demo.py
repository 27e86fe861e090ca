"""The main job on generated torsos, from scans to a report, in minutes on two cores.

Sixteen scans are pre-trained on without labels; the same fine-tuning then runs on the labels of a
few of them, from the pre-trained weights and from scratch; eight scans that neither has seen are
predicted and measured. The report shows both figures, whichever is higher.
"""

import shutil
from pathlib import Path

from voco.config import parse, read_yaml
from voco.errors import UsageError
from voco.recipes import FinetuneConfig, PretrainConfig
from voco.workflows.evaluate import evaluate
from voco.workflows.finetune import finetune
from voco.workflows.phantom import phantom
from voco.workflows.predict import predict
from voco.workflows.prepare import prepare
from voco.workflows.pretrain import pretrain
from voco.workflows.report import report

SEEN, UNSEEN = 16, 8
"""Scans to learn from, and scans that only serve to measure."""
SPACING_MM = (8.0, 8.0, 8.0)
"""Of the store. The scans have 5 mm, on which masks are measured; at 8 mm a network of this size
sees a whole cross-section at once, and steps are short enough for many."""


def demo(out: Path, recipes: dict[str, Path], seed: int = 0, *, overwrite: bool = False) -> str:
    """Run the main job on phantoms.

    Args:
        out: Folder to write.
        recipes: Files of the recipes ``demo-pretrain`` and ``demo-finetune``.
        seed: Of the scans and of the training.
        overwrite: Replace what is there.

    Returns:
        Both mean Dice figures, as measured, and where the report is.

    Raises:
        UsageError: If the folder holds something and may not be replaced.
    """
    _make_room(out, overwrite=overwrite)
    scans = phantom(out / "scans", SEEN, seed)
    new_scans = phantom(out / "new-scans", UNSEEN, seed + 1)
    prepare([scans], out / "store", spacing_mm=SPACING_MM)

    name = "demo-pretrain"
    pretraining = parse(PretrainConfig, read_yaml(recipes[name]) | {"seed": seed}, name)
    name = "demo-finetune"
    tuning = parse(FinetuneConfig, read_yaml(recipes[name]) | {"seed": seed}, name)

    pretrained = pretrain(pretraining, [out / "store"], out / "pretrain")
    for arm, weights in (("voco", pretrained), ("scratch", None)):
        run = finetune(tuning, [out / "store"], weights, out / f"finetune-{arm}")
        predict(run, [new_scans / "imagesTr"], out / f"masks-{arm}")
    measured = evaluate(
        out / "masks-voco",
        new_scans / "labelsTr",
        out / "evaluation",
        against=out / "masks-scratch",
        names=("VoCo", "scratch"),
        images=new_scans / "imagesTr",
        seed=seed,
    )
    return f"{measured}\nreport: {report(out)}"


def _make_room(out: Path, *, overwrite: bool) -> None:
    if out.exists() and any(out.iterdir()):
        if not overwrite:
            raise UsageError(f"{out}: holds something. Give another folder, or --overwrite.")
        shutil.rmtree(out)
