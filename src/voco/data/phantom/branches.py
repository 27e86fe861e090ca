"""Things that wind and branch: vessel trees, and loops of bowel."""

import numpy as np
from jaxtyping import Float64

from voco.data.phantom.shapes import Capsule, Number, Point, Shape, Union

Places = Float64[np.ndarray, "_ 3"]


def places_inside(shape: Shape, count: int, margin_mm: Number, rng: np.random.Generator) -> Places:
    """Random points at least a margin inside a solid; fewer than asked for where room is small."""
    low, high = shape.bounds
    tried = rng.uniform(low, high, (count * 12, 3))
    at = tried.T.astype(np.float32)[:, :, None, None]
    return tried[shape.distance(at)[:, 0, 0] < -margin_mm][:count]


def vessel_tree(
    root: Point, places: Places, tip_radius: Number, root_radius: Number
) -> Union | None:
    """A tree from a root to all places, thicker where it feeds more of them (Murray's law).

    Each place, nearest to the root first, is joined to the point of the tree that keeps both the
    new piece and the way back to the root short.
    """
    if len(places) == 0:
        return None
    order = np.argsort(np.linalg.norm(places - root, axis=1))
    nodes = np.concatenate([[root], places[order]])
    parents = np.zeros(len(nodes), int)
    length = np.zeros(len(nodes))
    for i in range(1, len(nodes)):
        piece = np.linalg.norm(nodes[:i] - nodes[i], axis=1)
        parents[i] = np.argmin(piece + 0.35 * length[:i])
        length[i] = length[parents[i]] + piece[parents[i]]
    fed = np.ones(len(nodes))
    for i in range(len(nodes) - 1, 0, -1):
        fed[parents[i]] += fed[i]
    radii = np.minimum(tip_radius * np.cbrt(fed), root_radius)
    return Union(
        tuple(
            Capsule(_point(nodes[parents[i]]), _point(nodes[i]), float(radii[i]), float(radii[i]))
            for i in range(1, len(nodes))
        )
    )


def winding_path(
    room: Shape, start: Point, count: int, step_mm: Number, rng: np.random.Generator
) -> list[Point]:
    """A path that winds through a solid, keeping away from itself."""
    path = [np.asarray(start, float)]
    heading = rng.normal(size=3)
    for _ in range(count - 1):
        turns = heading / np.linalg.norm(heading) + rng.normal(0, 0.9, (24, 3))
        options = path[-1] + step_mm * turns / np.linalg.norm(turns, axis=1, keepdims=True)
        at = options.T.astype(np.float32)[:, :, None, None]
        outside = np.maximum(room.distance(at)[:, 0, 0] + step_mm / 2, 0)
        walked = np.stack(path[:-2][-60:]) if len(path) > 2 else np.full((1, 3), 1e3)
        gap = np.linalg.norm(options[:, None] - walked[None], axis=2).min(axis=1)
        best = np.argmax(np.minimum(gap, 1.3 * step_mm) - 3 * outside)
        heading = options[best] - path[-1]
        path.append(options[best])
    return [_point(place) for place in path]


def _point(place: Float64[np.ndarray, "3"]) -> Point:
    return (float(place[0]), float(place[1]), float(place[2]))
