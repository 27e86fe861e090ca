"""Codes that tell tokens where they are in a grid."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from voco.shapes import Shape3


def position_code(grid: Shape3, width: int) -> Float[Tensor, "t e"]:
    """Sines, then cosines, of where a cube is along x, then y, then z.

    Frequencies fall from 1 to nearly 1/10000, as in the transformer of Vaswani et al. (2017).

    Args:
        grid: Cubes along each axis; their codes come in row-major order (x outermost).
        width: Length of a code, at least 6; what is left of a multiple of 6 is zero.
    """
    frequencies = 10_000.0 ** -(torch.arange(width // 6) / (width // 6))
    places = torch.cartesian_prod(*(torch.arange(side) for side in grid)).float()
    angles = places[:, :, None] * frequencies
    code = torch.cat([angles.sin(), angles.cos()], dim=2).flatten(1)
    return F.pad(code, (0, width % 6))


def resampled_code(code: Float[Tensor, "t e"], grid: Shape3, to: Shape3) -> Float[Tensor, "_ e"]:
    """Position codes of a grid stretched to another one, trilinearly; in at least float32.

    The outer edges of the grids coincide, as in :func:`torch.nn.functional.interpolate` with
    ``align_corners=False``. Products of matrices, one for each axis, give the same: the gradient
    of torch's function adds up in a random order on a GPU.

    Args:
        code: In row-major order.
        grid: Tokens along each axis.
        to: Tokens along each axis afterwards.
    """
    if grid == to:
        return code
    # Autocast knows nothing of tensors without storage.
    with torch.autocast("cpu" if code.is_meta else code.device.type, enabled=False):
        wide = code.to(torch.promote_types(code.dtype, torch.float32))
        x, y, z = (_shares(old, new).to(wide) for old, new in zip(grid, to, strict=True))
        cells = torch.einsum("ia,jb,kc,ijke->abce", x, y, z, wide.unflatten(0, grid))
        return cells.flatten(0, 2)


def _shares(old: int, new: int) -> Float[Tensor, "old new"]:
    """How much of each old place there is in each new one."""
    return F.interpolate(torch.eye(old)[None], size=new, mode="linear")[0]
