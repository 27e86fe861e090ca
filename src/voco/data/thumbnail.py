"""One slice of a case as a small PNG."""

import base64
import struct
import zlib

import numpy as np
from jaxtyping import Float, Integer, UInt8

from voco.data.resampling import resized
from voco.data.store import Case, Store

_SIDE = 128
"""Pixels of the longer side."""

_CT_WINDOW = (-160.0, 240.0)
_LABELLED_VOXELS = 1 << 24
"""Labels up to this size are read whole, to show the slice with most of it."""

_COLOURS = np.array(
    [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167)],
    np.float32,
)
"""Told apart by the colour-blind as well (Okabe and Ito, 2008)."""


def thumbnail(store: Store, case: Case) -> str:
    """The middle axial slice, or the one with most of the label, as a ``data:`` address.

    Seen from the feet, as radiologists do: the patient's right is on the left, front is up. CT in
    a soft-tissue window, all else from its 0.5th to its 99.5th percentile.

    Raises:
        StoreError: If the case's files are damaged.
    """
    depth = _depth(store, case)
    x, y, _ = case.shape
    plane = ((0, 0, depth), (x, y, depth + 1))
    stored = store.read(case.id, plane)[:1].astype(np.float32)
    values = stored * np.float32(case.scale[0]) + np.float32(case.offset[0])
    low, high = _window(case)
    grey = np.clip((resized(values, _size(case))[0, :, :, 0] - low) / (high - low), 0, 1) * 255
    image = np.repeat(grey[:, :, None], 3, axis=2).astype(np.float32)
    if case.has_label:
        label = store.read_label(case.id, plane)[:, :, 0]
        image = _painted(image, _nearest(label, image.shape[:2]))
    pixels = image[::-1, ::-1].transpose(1, 0, 2).round().astype(np.uint8)
    return "data:image/png;base64," + base64.b64encode(encode_png(pixels)).decode()


def encode_png(pixels: UInt8[np.ndarray, "rows columns 3"]) -> bytes:
    """An RGB picture as PNG (ISO/IEC 15948): one chunk of deflated rows, no filter."""
    rows, columns, _ = pixels.shape
    lines = np.concatenate([np.zeros((rows, 1), np.uint8), pixels.reshape(rows, -1)], axis=1)
    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    body = zlib.compress(lines.tobytes(), 9)
    chunks = ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def _depth(store: Store, case: Case) -> int:
    if case.has_label and int(np.prod(case.shape)) <= _LABELLED_VOXELS:
        area = np.count_nonzero(store.read_label(case.id), axis=(0, 1))
        if area.any():
            return int(area.argmax())
    start, stop = case.foreground or ((0, 0, 0), case.shape)
    return (start[2] + stop[2]) // 2


def _window(case: Case) -> tuple[float, float]:
    if case.modality == "CT":
        return _CT_WINDOW
    facts = case.statistics[0]
    low, high = facts.percentiles["0.5"], facts.percentiles["99.5"]
    if low >= high:
        low, high = facts.minimum, facts.maximum
    return low, max(high, np.nextafter(low, np.inf))


def _size(case: Case) -> tuple[int, int, int]:
    width, height = (n * s for n, s in zip(case.shape[:2], case.spacing_mm[:2], strict=True))
    scale = _SIDE / max(width, height)
    return (max(1, round(width * scale)), max(1, round(height * scale)), 1)


def _nearest(
    label: Integer[np.ndarray, "x y"], shape: tuple[int, ...]
) -> Integer[np.ndarray, "_ _"]:
    index = [(np.arange(n) + 0.5) * m // n for n, m in zip(shape, label.shape, strict=True)]
    return label[np.ix_(*(line.astype(int) for line in index))]


def _painted(
    image: Float[np.ndarray, "x y 3"], label: Integer[np.ndarray, "x y"]
) -> Float[np.ndarray, "x y 3"]:
    colours = _COLOURS[(label.astype(int) - 1) % len(_COLOURS)]
    return np.where((label > 0)[:, :, None], 0.55 * image + 0.45 * colours, image)
