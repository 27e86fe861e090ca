"""Names of axes, and the shapes made of them.

``b`` batch, ``c`` channels, ``x y z`` space (RAS order: towards Right, Anterior, Superior),
``n`` crops, ``q k`` queries and bases, ``e`` embedding, ``t`` tokens. A plural name is a batch
(``volumes``), a singular one a single case. ``_`` promises nothing.
"""

from jaxtyping import Float, Int64
from torch import Tensor

Shape3 = tuple[int, int, int]
"""Counts or voxels along x, y and z."""

Spacing = tuple[float, float, float]
"""Millimetres per voxel along x, y and z."""

Volumes = Float[Tensor, "b c x y z"]
"""A batch of volumes of one size, intensities already brought to the network's range."""

Level = Float[Tensor, "b _ _ _ _"]
"""One level of a feature pyramid."""

Crops = Float[Tensor, "b n c _ _ _"]
"""Several crops of each volume of a batch."""

Boxes = Int64[Tensor, "_ 2 3"]
"""Start and stop voxel of each box along x, y, z; half open."""
