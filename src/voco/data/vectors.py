"""Feature vectors of scans on disk: what they are of, where that lies, and what made them.

``.npz`` (numpy) holds the arrays

==============  ==========  =================================================================
``vectors``     (n, e)      float32, one row for each scan or crop
``scan``        (n,)        name of the scan
``source``      (n,)        file or folder that it was read from
``sha256``      (n,)        of its content (:func:`voco.data.intake.digest_source`)
``box``         (n, 2, 3)   start and stop voxel, half open, in the scan as it was prepared: axes
                            towards R, A and S, at the spacing in the provenance; may reach
                            beyond the scan
``centre_mm``   (n, 3)      middle of the box in the world, RAS+ millimetres
``crops``       (n,)        how many crops the vector is the mean of
``provenance``  ()          JSON
==============  ==========  =================================================================

``.parquet`` holds the same as columns (``box`` as ``start_voxel`` and ``stop_voxel``), the
provenance under the key ``voco`` of the schema's metadata. Neither holds anything that could run.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from voco.data.store import write_atomically
from voco.errors import UsageError
from voco.extras import needed

SUFFIXES = (".npz", ".parquet")
"""What a file of vectors can be."""


@dataclass(frozen=True)
class Vectors:
    """Feature vectors, one row each.

    Attributes:
        vectors: The features.
        scan: Name of the scan.
        source: File or folder that it was read from.
        sha256: Of the scan's content.
        box: Start and stop voxel, half open, in the scan as it was prepared.
        centre_mm: Middle of the box, RAS+ millimetres.
        crops: How many crops the vector is the mean of.
        provenance: What made them; plain values.
    """

    vectors: Float32[np.ndarray, "n e"]
    scan: tuple[str, ...]
    source: tuple[str, ...]
    sha256: tuple[str, ...]
    box: Int64[np.ndarray, "n 2 3"]
    centre_mm: Float64[np.ndarray, "n 3"]
    crops: Int64[np.ndarray, "n"]
    provenance: dict[str, Any]


def check_vectors_file(file: Path) -> None:
    """Refuse a file that vectors cannot be written to, before any is computed.

    Raises:
        UsageError: If its name ends otherwise, or the package that writes it is not installed.
    """
    if file.suffix not in SUFFIXES:
        raise UsageError(f"{file}: vectors are written as {' or '.join(SUFFIXES)}.")
    if file.suffix == ".parquet":
        _pyarrow()


def write_vectors(rows: Vectors, file: Path) -> None:
    """Write vectors, whole or not at all; equal vectors give equal bytes.

    Raises:
        UsageError: As :func:`check_vectors_file`.
    """
    check_vectors_file(file)
    content = _npz(rows) if file.suffix == ".npz" else _parquet(rows)
    write_atomically(file, content)


def _npz(rows: Vectors) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(
        stream,
        vectors=rows.vectors,
        scan=np.array(rows.scan, np.str_),
        source=np.array(rows.source, np.str_),
        sha256=np.array(rows.sha256, np.str_),
        box=rows.box,
        centre_mm=rows.centre_mm,
        crops=rows.crops,
        provenance=np.array(json.dumps(rows.provenance)),
    )
    return stream.getvalue()


def _parquet(rows: Vectors) -> bytes:
    arrow, parquet = _pyarrow()

    def lists(array: np.ndarray) -> Any:  # noqa: ANN401 (pyarrow has no types)
        flat = arrow.array(np.ascontiguousarray(array).ravel())
        return arrow.FixedSizeListArray.from_arrays(flat, array.shape[1])

    table = arrow.table(
        {
            "scan": arrow.array(rows.scan, arrow.string()),
            "source": arrow.array(rows.source, arrow.string()),
            "sha256": arrow.array(rows.sha256, arrow.string()),
            "start_voxel": lists(rows.box[:, 0]),
            "stop_voxel": lists(rows.box[:, 1]),
            "centre_mm": lists(rows.centre_mm),
            "crops": arrow.array(rows.crops),
            "vector": lists(rows.vectors),
        }
    )
    table = table.replace_schema_metadata({"voco": json.dumps(rows.provenance)})
    stream = io.BytesIO()
    parquet.write_table(table, stream)
    return stream.getvalue()


def _pyarrow() -> tuple[Any, Any]:
    what = "Writing .parquet"
    return needed("pyarrow", "parquet", what), needed("pyarrow.parquet", "parquet", what)
