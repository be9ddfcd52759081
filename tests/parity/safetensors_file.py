"""Writes safetensors without the package, as the reference scripts do."""
import json
import struct

import numpy as np

KINDS = {"float64": "F64", "int64": "I64", "float32": "F32", "int32": "I32"}


def save(path, arrays, metadata):
    """`arrays` by name, wide types first; `metadata` is text by name."""
    arrays = dict(sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize))
    header, offset = {"__metadata__": metadata}, 0
    for name, array in arrays.items():
        header[name] = {"dtype": KINDS[str(array.dtype)], "shape": list(array.shape),
                        "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).tobytes())
