"""A whole CT through sliding windows onto its own grid, against the plain way of doing it.

Both start from the same prepared volume and network, and end with the mask on the CT's grid. The
network is two cheap layers, so that what is measured is all that goes on around a network:
windows, blending, resampling, comparing. A real one adds the same time to both sides. The volume
holds smoothed organ numbers instead of HU, and the network knows which is which: so the mask has
as many borders as that of a trained network, and it is along these that work is to be done.

``python -m voco.bench.predicting FOLDER plain|ours``
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from voco.bench.apart import Apart, report
from voco.bench.ct import in_lps, organs
from voco.data.preprocess import ras_grid, restore_rows
from voco.data.resampling import resized_labels
from voco.engine.allocator import keep_freed_pages
from voco.geometry import Grid
from voco.inference import Windows, sliding_window
from voco.shapes import Shape3

CLASSES, OVERLAP = 14, 0.5


def subject(
    folder: Path,
    shape: Shape3 = (512, 512, 300),
    length_mm: float = 375.0,
    roi: int = 96,
    spacing_mm: float = 1.5,
) -> Apart:
    """Prediction of one CT.

    Args:
        folder: Empty; gets the prepared volume.
        shape: Voxels of the CT.
        length_mm: How much of the body it shows.
        roi: Voxels along each side of a window.
        spacing_mm: What the network sees.
    """
    label = organs(length_mm)
    source = in_lps(label.grid.reshaped(shape))
    grid = ras_grid(source).resampled((spacing_mm, spacing_mm, spacing_mm))
    numbers = resized_labels(label.array[0], grid.shape).clip(0, CLASSES - 1)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "volume.npy", numbers[None].astype(np.float32))
    case = {
        "roi": (roi,) * 3,
        "grid": _saved(grid),
        "source": _saved(source),
    }
    (folder / "case.json").write_text(json.dumps(case))
    sizes = ["x".join(map(str, sides)) for sides in (shape, grid.shape)]
    return Apart(
        name="predict",
        what=f"mask of a CT of {sizes[0]} voxels, {CLASSES} classes, at {spacing_mm} mm "
        f"({sizes[1]}): windows of {roi} cubed, half overlapping, a network of two cheap layers",
        module="voco.bench.predicting",
        folder=folder,
        equal=same_voxels,
        most=3,
    )


class Cheap(nn.Module):
    """The class whose number is nearest to the mean of the voxels around."""

    def __init__(self) -> None:
        super().__init__()
        number = torch.arange(CLASSES, dtype=torch.float32)
        self.smooth = nn.AvgPool3d(3, 1, 1)
        # -(x - number)^2 without x^2, which all classes share.
        self.classes = nn.Conv3d(1, CLASSES, 1)
        self.classes.weight.data = 2 * number.view(-1, 1, 1, 1, 1)
        self.classes.bias = nn.Parameter(-number.square())

    def forward(self, volumes: Float[Tensor, "b 1 x y z"]) -> Float[Tensor, "b k x y z"]:
        """Scores of the classes."""
        return self.classes(self.smooth(volumes))


def plain(
    network: nn.Module, volume: Float[Tensor, "1 x y z"], roi: Shape3, grids: tuple[Grid, Grid]
) -> Integer[np.ndarray, "_ _ _"]:
    """All logits of all windows, all of them resampled, then compared (as MONAI's tutorials do).

    The CT's axes point to Left and Posterior, those of the volume to Right and Anterior.
    """
    from monai.inferers.utils import sliding_window_inference  # noqa: PLC0415 (takes seconds)

    with torch.no_grad():
        logits = sliding_window_inference(
            volume[None], roi, 1, network, overlap=OVERLAP, mode="gaussian"
        )
        assert isinstance(logits, Tensor)
        logits = F.interpolate(logits, size=grids[1].shape, mode="trilinear")
        return logits[0].argmax(dim=0).flip(0, 1).to(torch.uint8).numpy()


def ours(
    network: nn.Module, volume: Float[Tensor, "1 x y z"], roi: Shape3, grids: tuple[Grid, Grid]
) -> Integer[np.ndarray, "_ _ _"]:
    """What ``voco predict`` does between the prepared volume and the mask."""
    rows = sliding_window(network, volume, Windows(roi, OVERLAP))
    return restore_rows(rows, *grids).labels


def same_voxels(folder: Path) -> str:
    """How many voxels both masks agree on."""
    first, second = (np.load(folder / f"{way}.npy") for way in ("plain", "ours"))
    return f"same class on {100 * float((first == second).mean()):.4f} % of voxels"


def main(folder: Path, way: str) -> None:
    """One way, in this process."""
    case = json.loads((folder / "case.json").read_text())
    grid, source = _grid(case["grid"]), _grid(case["source"])
    network, roi = Cheap().requires_grad_(requires_grad=False), tuple(case["roi"])
    volume = torch.from_numpy(np.load(folder / "volume.npy"))
    if way == "ours":
        keep_freed_pages()

    def run(part: Float[Tensor, "1 x y z"], grids: tuple[Grid, Grid]) -> Any:  # noqa: ANN401
        sides = tuple(map(min, roi, part.shape[1:]))
        run_it = plain if way == "plain" else ours
        return run_it(network, part, sides, grids)

    few = Grid((8, 8, 8), np.eye(4))
    run(torch.zeros(1, 8, 8, 8), (few, in_lps(few)))  # imports what is needed
    np.save(folder / f"{way}.npy", report(lambda: run(volume, (grid, source))))


def _saved(grid: Grid) -> dict[str, Any]:
    return {"shape": grid.shape, "affine": grid.affine.tolist()}


def _grid(saved: dict[str, Any]) -> Grid:
    x, y, z = saved["shape"]
    return Grid((x, y, z), np.asarray(saved["affine"], float))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
