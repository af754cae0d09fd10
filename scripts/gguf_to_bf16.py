"""Unpack the weights of a GGUF file to 16 bits each: what `gguf_to_safetensors.py` makes, in GGUF.

    gguf_to_bf16.py MODEL.gguf OUT.gguf

So llama.cpp and vLLM can be measured with the same weights: see `make bench-vllm`.
"""

import sys
from pathlib import Path

import gguf
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader, GGUFValueType, GGUFWriter

# Written anew, as they are no longer true.
_NOT_COPIED = {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count"}
_REPLACED = {"general.architecture", "general.file_type", "general.quantization_version"}


def convert(source: Path, target: Path) -> None:
    """Write a copy whose matrices are BF16 and whose vectors are F32, as llama.cpp has them."""
    reader = GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    part = target.with_name(target.name + ".part")
    writer = GGUFWriter(part, architecture)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    for field in reader.fields.values():
        if field.name not in _NOT_COPIED | _REPLACED:
            kind = field.types[0]
            inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, inner)
    for tensor in reader.tensors:
        weights = gguf.dequantize(tensor.data, tensor.tensor_type)
        dtype = Type.F32 if weights.ndim == 1 else Type.BF16
        writer.add_tensor(tensor.name, gguf.quantize(weights, dtype), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(target)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
