"""Solids of which a torso is made: where they end, and how far a point is from their surface.

Everything is in *body coordinates*: millimetres, x towards the right of the patient, y towards
anterior, z towards superior, the origin on the midline at the upper end of the sacrum. Distances
are negative inside. Except for capsules they are first-order estimates, ``(f - 1) / |grad f|``
of an implicit function ``f``: exact on the surface, which is where they are used.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Float, Float32
from scipy.interpolate import PchipInterpolator

Points = Float32[np.ndarray, "3 x y z"]
"""Body coordinates of voxels."""

Distances = Float32[np.ndarray, "x y z"]
"""Millimetres to a surface, negative inside."""

Number = float | int
"""A length or an angle; measures of the anatomy read better as whole numbers."""

Point = tuple[Number, Number, Number]
"""Right, anterior, superior (mm)."""

Bounds = Float[np.ndarray, "2 3"]
"""Lowest and highest corner of a box that holds a solid (mm)."""

_EVERYWHERE = 1e4
_TABLE_MM = 0.25
"""Step of tables over height: looked up at the nearest entry, which is far below a voxel."""


class Shape(ABC):
    """A solid."""

    @property
    @abstractmethod
    def bounds(self) -> Bounds:
        """A box that holds it."""

    @abstractmethod
    def distance(self, at: Points) -> Distances:
        """Millimetres to the surface, negative inside."""

    def parts(self) -> Iterator["Shape"]:
        """Solids whose union it is; small ones are cheaper than one large one."""
        yield self


def turned(degrees: Point) -> Float[np.ndarray, "3 3"]:
    """The matrix that undoes turns about x, then y, then z."""
    turns = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        turn = np.eye(3)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        turns = turn @ turns
    return turns.T


def power(base: Float32[np.ndarray, "*s"], exponent: float) -> Float32[np.ndarray, "*s"]:
    """``base ** exponent`` of numbers that are not negative."""
    if exponent == 2.0:
        return base * base
    return np.exp(np.float32(exponent) * np.log(np.maximum(base, np.float32(1e-6))))


@dataclass(frozen=True)
class Ellipsoid(Shape):
    """An ellipsoid; with a larger exponent a rounded box."""

    centre: Point
    radii: Point
    turn_deg: Point = (0.0, 0.0, 0.0)
    exponent: float = 2.0

    @property
    def bounds(self) -> Bounds:
        """Of the turned box around it."""
        reach = np.abs(turned(self.turn_deg).T) @ np.asarray(self.radii)
        if self.exponent == 2.0:
            reach = np.sqrt((turned(self.turn_deg).T ** 2) @ np.square(self.radii))
        return np.stack([np.asarray(self.centre) - reach, np.asarray(self.centre) + reach])

    def distance(self, at: Points) -> Distances:
        """First-order estimate."""
        turn = turned(self.turn_deg).astype(np.float32)
        away = [at[axis] - np.float32(self.centre[axis]) for axis in range(3)]
        total = np.zeros_like(at[0])
        slope = np.zeros_like(at[0])
        for row, radius in zip(turn, self.radii, strict=True):
            along = np.abs(row[0] * away[0] + row[1] * away[1] + row[2] * away[2])
            along *= np.float32(1 / radius)
            term = power(along, self.exponent - 1)
            total += term * along
            slope += np.square(term * np.float32(1 / radius))
        return estimate(total, slope, self.exponent)


def estimate(
    total: Float32[np.ndarray, "*s"], slope: Float32[np.ndarray, "*s"], exponent: float
) -> Float32[np.ndarray, "*s"]:
    """``(f - 1) / |grad f|`` for ``f = total ** (1 / exponent)``.

    Args:
        total: Sum of ``(|x| / r) ** exponent``.
        slope: Sum of the squares of ``(|x| / r) ** (exponent - 1) / r``.
        exponent: 2 for an ellipse, more for a rounded box.
    """
    total = np.maximum(total, np.float32(1e-6))
    level = power(total, 1 / exponent) if exponent != 2.0 else np.sqrt(total)
    gradient = np.sqrt(np.maximum(slope, np.float32(1e-12))) * level / total
    return (level - 1) / gradient


@dataclass(frozen=True)
class Capsule(Shape):
    """A straight piece of a tube with round ends, and a radius at each."""

    start: Point
    stop: Point
    start_radius: Number
    stop_radius: Number

    @property
    def bounds(self) -> Bounds:
        """Of both end balls."""
        r, s = self.start_radius, self.stop_radius
        ends = list(zip(self.start, self.stop, strict=True))
        low = [min(a - r, b - s) for a, b in ends]
        return np.asarray([low, [max(a + r, b + s) for a, b in ends]], float)

    def distance(self, at: Points) -> Distances:
        """To the nearest point of the axis, less the radius there."""
        axis = np.subtract(self.stop, self.start).astype(np.float32)
        away = [at[i] - np.float32(self.start[i]) for i in range(3)]
        share = away[0] * axis[0] + away[1] * axis[1] + away[2] * axis[2]
        share *= np.float32(1 / max(float(axis @ axis), 1e-6))
        share = np.clip(share, 0, 1)
        squares = [np.square(away[i] - share * axis[i]) for i in range(3)]
        radius = self.start_radius + share * np.float32(self.stop_radius - self.start_radius)
        return (np.sqrt(squares[0] + squares[1] + squares[2]) - radius).astype(np.float32)


@dataclass(frozen=True)
class Union(Shape):
    """Several solids as one."""

    members: tuple[Shape, ...]
    blend_mm: Number = 0.0
    """Width over which the seam between two members is rounded."""

    @property
    def bounds(self) -> Bounds:
        """Around all members."""
        boxes = np.stack([member.bounds for member in self.members])
        return np.stack([boxes[:, 0].min(axis=0), boxes[:, 1].max(axis=0)])

    def distance(self, at: Points) -> Distances:
        """To the nearest member, with rounded seams."""
        nearest = self.members[0].distance(at)
        for member in self.members[1:]:
            nearest = _blended(nearest, member.distance(at), self.blend_mm)
        return nearest

    def parts(self) -> Iterator[Shape]:
        """The members, unless their seams are rounded."""
        if self.blend_mm > 0:
            yield self
        else:
            for member in self.members:
                yield from member.parts()


def _blended(one: Distances, other: Distances, width: Number) -> Distances:
    """The smaller of two distances, as a polynomial where they are close (Quilez, 2013)."""
    if width <= 0:
        return np.minimum(one, other)
    close = np.maximum(width - np.abs(one - other), 0) / np.float32(width)
    return np.minimum(one, other) - close * close * np.float32(width / 4)


@dataclass(frozen=True)
class Intersection(Shape):
    """What lies in all of several solids."""

    members: tuple[Shape, ...]

    @property
    def bounds(self) -> Bounds:
        """What all boxes share."""
        boxes = np.stack([member.bounds for member in self.members])
        return np.stack([boxes[:, 0].max(axis=0), boxes[:, 1].min(axis=0)])

    def distance(self, at: Points) -> Distances:
        """To the farthest member."""
        farthest = self.members[0].distance(at)
        for member in self.members[1:]:
            farthest = np.maximum(farthest, member.distance(at))
        return farthest


@dataclass(frozen=True)
class Outside(Shape):
    """All that a solid is not."""

    solid: Shape

    @property
    def bounds(self) -> Bounds:
        """Everywhere."""
        return np.full((2, 3), _EVERYWHERE) * [[-1], [1]]

    def distance(self, at: Points) -> Distances:
        """Of the solid, its sign turned."""
        return -self.solid.distance(at)


@dataclass(frozen=True)
class Grown(Shape):
    """A solid grown (or, below zero, shrunk) on all sides."""

    solid: Shape
    by_mm: Number

    @property
    def bounds(self) -> Bounds:
        """The grown box; never one that holds nothing."""
        low, high = self.solid.bounds
        middle = (low + high) / 2
        by = self.by_mm
        return np.stack([np.minimum(low - by, middle), np.maximum(high + by, middle)])

    def distance(self, at: Points) -> Distances:
        """Of the solid, less the growth."""
        return self.solid.distance(at) - np.float32(self.by_mm)

    def parts(self) -> Iterator[Shape]:
        """The grown parts."""
        for part in self.solid.parts():
            yield Grown(part, self.by_mm)


@dataclass(frozen=True)
class HalfSpace(Shape):
    """All on one side of a plane."""

    point: Point
    outwards: Point

    @property
    def bounds(self) -> Bounds:
        """Everywhere."""
        return np.full((2, 3), _EVERYWHERE) * [[-1], [1]]

    def distance(self, at: Points) -> Distances:
        """To the plane."""
        normal = np.asarray(self.outwards, np.float32)
        normal = normal / np.linalg.norm(normal)
        away = [(at[i] - np.float32(self.point[i])) * normal[i] for i in range(3)]
        return away[0] + away[1] + away[2]


@dataclass(frozen=True)
class Column(Shape):
    """A trunk: rounded rectangles whose width and depth change with height.

    Rows of ``profile`` are height, half width, anterior end, posterior end (mm), from below.
    """

    profile: tuple[tuple[Number, Number, Number, Number], ...]
    exponent: float = 2.4
    closed: bool = True
    """Whether it ends with the first and the last row, or goes on for ever."""
    _heights: Float32[np.ndarray, "_"] = field(init=False, repr=False, compare=False)
    _rows: Float32[np.ndarray, "3 _"] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rows = np.asarray(self.profile)
        heights = np.arange(rows[0, 0], rows[-1, 0] + _TABLE_MM, _TABLE_MM)
        table = PchipInterpolator(rows[:, 0], rows[:, 1:])(heights).T
        half, front, back = table
        centre, depth = (front + back) / 2, (front - back) / 2
        object.__setattr__(self, "_heights", heights.astype(np.float32))
        object.__setattr__(self, "_rows", np.stack([half, centre, depth]).astype(np.float32))

    @property
    def bounds(self) -> Bounds:
        """Around all heights."""
        rows = np.asarray(self.profile)
        low, high = (rows[0, 0], rows[-1, 0]) if self.closed else (-_EVERYWHERE, _EVERYWHERE)
        half = rows[:, 1].max()
        return np.asarray([[-half, rows[:, 3].min(), low], [half, rows[:, 2].max(), high]])

    def section(self, z: Float32[np.ndarray, "*s"]) -> list[Float32[np.ndarray, "*s"]]:
        """Half width, centre and half depth at heights."""
        entry = np.rint((z - self._heights[0]) / np.float32(_TABLE_MM)).astype(np.int32)
        np.clip(entry, 0, len(self._heights) - 1, out=entry)
        return [row.take(entry) for row in self._rows]

    def distance(self, at: Points) -> Distances:
        """First-order estimate within the horizontal plane."""
        half, centre, depth = self.section(at[2])
        across, along = np.abs(at[0]) / half, np.abs(at[1] - centre) / depth
        across_term = power(across, self.exponent - 1)
        along_term = power(along, self.exponent - 1)
        total = across_term * across + along_term * along
        slope = np.square(across_term / half) + np.square(along_term / depth)
        side = estimate(total, slope, self.exponent)
        if not self.closed:
            return side
        return np.maximum(side, np.maximum(self._heights[0] - at[2], at[2] - self._heights[-1]))


@dataclass(frozen=True)
class Below(Shape):
    """All below a surface given as heights over a table of x and y."""

    low: tuple[float, float]
    """x and y of the first entry (mm)."""
    step_mm: float
    heights: Float32[np.ndarray, "_ _"] = field(repr=False)

    @property
    def bounds(self) -> Bounds:
        """Everywhere below the highest point."""
        top = float(self.heights.max())
        return np.asarray([[-_EVERYWHERE] * 3, [_EVERYWHERE, _EVERYWHERE, top]])

    @cached_property
    def _steepness(self) -> Float32[np.ndarray, "_ _"]:
        slopes = np.gradient(self.heights, self.step_mm)
        return (1 / np.sqrt(1 + slopes[0] ** 2 + slopes[1] ** 2)).astype(np.float32)

    def distance(self, at: Points) -> Distances:
        """Height above the surface, shortened by its slope."""
        step, entry = np.float32(self.step_mm), np.zeros(at.shape[1:], np.int32)
        for axis, count in enumerate(self.heights.shape):
            place = np.rint((at[axis] - np.float32(self.low[axis])) / step).astype(np.int32)
            entry *= count
            entry += np.clip(place, 0, count - 1)
        return (at[2] - self.heights.take(entry)) * self._steepness.take(entry)


def tube(points: Sequence[Point], radii: Sequence[Number] | Number) -> Union:
    """A bent tube through points, with a radius at each (or one for all)."""
    if isinstance(radii, float | int):
        radii = [float(radii)] * len(points)
    ends = zip(points, points[1:], radii, radii[1:], strict=False)
    return Union(tuple(Capsule(a, b, float(r), float(s)) for a, b, r, s in ends))


def smooth_path(points: Sequence[Point], count: int) -> list[Point]:
    """Evenly spaced points on a smooth curve through given ones."""
    given = np.asarray(points, float)
    steps = np.linalg.norm(np.diff(given, axis=0), axis=1)
    length = np.concatenate([[0.0], np.cumsum(np.maximum(steps, 1e-3))])
    curve = PchipInterpolator(length, given)(np.linspace(0, length[-1], count))
    return [(float(x), float(y), float(z)) for x, y, z in curve]


def smooth_tube(
    points: Sequence[Point], radii: Sequence[Number] | Number, count: int | None = None
) -> Union:
    """A smoothly bent tube through points; radii are interpolated between them."""
    count = count or 3 * len(points)
    if isinstance(radii, float | int):
        return tube(smooth_path(points, count), radii)
    given = np.asarray(points, float)
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(given, axis=0), axis=1))])
    along = np.interp(np.linspace(0, length[-1], count), length, radii)
    return tube(smooth_path(points, count), [float(radius) for radius in along])
