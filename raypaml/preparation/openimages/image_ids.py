"""Image ids of Open Images: 64-bit integers, written as 16 lower-case hexadecimal digits."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypaml.preparation.findings import EXAMPLES, Findings

Ids = NDArray[np.uint64]
_DIGIT = np.full(256, 255, np.uint8)
_DIGIT[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


def parse_ids(column: pa.StringArray, finding: str, findings: Findings) -> tuple[Ids, NDArray[np.bool_]]:
    """Returns the ids as integers, and which rows hold an id; the other rows are counted as `finding`."""
    shaped = pc.fill_null(pc.equal(pc.binary_length(column), 16), False).to_numpy(zero_copy_only=False)
    full = column if shaped.all() else column.filter(pa.array(shaped))
    _, offsets, data = full.buffers()
    begin = np.frombuffer(offsets, np.int32)[full.offset] if len(full) else 0
    text = np.frombuffer(data, np.uint8, 16 * len(full), begin) if len(full) else np.zeros(0, np.uint8)
    digits = _DIGIT[text].reshape(-1, 16)
    right = (digits < 16).all(1)
    packed = (digits[:, ::2] << 4 | digits[:, 1::2]) if right.all() else (digits[:, ::2] << 4 | digits[:, 1::2])[right]
    shaped[np.flatnonzero(shaped)[~right]] = False
    findings.add(finding, (~shaped).sum(), column.filter(pa.array(~shaped)).slice(0, EXAMPLES).to_pylist())
    return np.ascontiguousarray(packed).view(">u8").ravel().astype(np.uint64), shaped


def hex_keys(ids: Ids) -> pa.StringArray:
    """Writes ids as 16 hexadecimal digits each."""
    packed = ids.astype(">u8").view(np.uint8)
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)[np.stack([packed >> 4, packed & 15], 1).ravel()]
    offsets = np.arange(len(ids) + 1, dtype=np.int32) * 16
    return pa.StringArray.from_buffers(len(ids), pa.py_buffer(offsets), pa.py_buffer(digits))


def hex_id(image: int) -> str:
    """Writes one id as 16 hexadecimal digits."""
    return f"{int(image):016x}"
