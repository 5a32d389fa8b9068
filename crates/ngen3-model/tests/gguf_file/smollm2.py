"""Prints the hash in smollm2.sha256: of the name, type, shape and the SHA-256 of the f32 values of every tensor, a line each.

    python smollm2.py FOLDER > smollm2.sha256        FOLDER holds SmolLM2-135M-Instruct.Q4_1.gguf
Needs: pip install gguf numpy
"""
import hashlib, sys
import gguf, numpy as np
from gguf.quants import dequantize

lines = []
for tensor in gguf.GGUFReader(sys.argv[1] + "/SmolLM2-135M-Instruct.Q4_1.gguf").tensors:
    values = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype="<f4")
    shape = [int(dim) for dim in reversed(tensor.shape)]
    lines.append(f"{tensor.name} {tensor.tensor_type.name} {shape} {hashlib.sha256(values.tobytes()).hexdigest()}\n")
print(hashlib.sha256("".join(lines).encode()).hexdigest())
