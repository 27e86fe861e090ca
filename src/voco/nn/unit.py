"""Precision and direction of embeddings."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def at_least_float32(values: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The values in float32, or as they are if that is wider."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def unit(rows: Float[Tensor, "*n e"]) -> Float[Tensor, "*n e"]:
    """Rows at unit length, in at least float32.

    Those shorter than about 1e-6 stay short, so that values and slopes are bounded.
    """
    rows = at_least_float32(rows)
    # A constant factor changes no direction, but keeps squares from overflowing or vanishing.
    scale = rows.detach().abs().amax(dim=-1, keepdim=True).clamp(min=1e-6)
    return F.normalize(rows / scale, dim=-1, eps=1.0)
