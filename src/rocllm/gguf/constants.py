"""The numbers of the GGUF format, and the bounds that rocllm sets to what it reads.

Sources: docs/gguf.md of ggml; ggml/include/ggml.h, gguf-py/gguf/constants.py and include/llama.h of
llama.cpp b11434.
"""

from __future__ import annotations

from typing import Final, NamedTuple

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
DEFAULT_ALIGNMENT: Final = 32

# What llama.cpp allows (GGML_MAX_DIMS and GGML_MAX_NAME in ggml.h, where the name's terminating
# NUL counts; LLAMA_MAX_LAYERS in src/llama-hparams.h), and the longest key of the specification.
MAX_DIMENSIONS: Final = 4
MAX_TENSOR_NAME: Final = 63
MAX_LAYERS: Final = 512
MAX_KEY: Final = 65535

# Our own bounds, so that a hostile file costs at most 64 MiB and a second. Each is several times
# what the largest real files have: a vocabulary of 262,144 tokens with 514,906 merges, some
# thousand tensors, some hundred keys, chat templates of 30 KB, 20 MB before the tensors' data.
MAX_KEYS: Final = 16_384
MAX_TENSORS: Final = 16_384
MAX_STRINGS: Final = 2**21  # that are passed over in arrays, all together
MAX_HEADER: Final = 256 * 2**20  # bytes before the tensors' data
MAX_KEPT: Final = 40 * 2**20  # bytes of Python objects that are made of the header
# Arrays of up to so many elements are read unasked: facts that have one value per layer are.
SMALL_ARRAY: Final = 1024
# A longer string is left in the file (some old ones hold a whole tokenizer.json).
LONG_STRING: Final = 2**20


class ValueType(NamedTuple):
    """A type of metadata: its name in the specification, its code in `struct`, its least bytes."""

    name: str
    code: str
    size: int


UINT32: Final = 4
STRING: Final = 8
ARRAY: Final = 9
VALUE_TYPES: Final = {
    0: ValueType("uint8", "B", 1),
    1: ValueType("int8", "b", 1),
    2: ValueType("uint16", "H", 2),
    3: ValueType("int16", "h", 2),
    UINT32: ValueType("uint32", "I", 4),
    5: ValueType("int32", "i", 4),
    6: ValueType("float32", "f", 4),
    7: ValueType("bool", "?", 1),
    STRING: ValueType("string", "", 8),
    ARRAY: ValueType("array", "", 12),
    10: ValueType("uint64", "Q", 8),
    11: ValueType("int64", "q", 8),
    12: ValueType("float64", "d", 8),
}


class TensorType(NamedTuple):
    """A type of tensor: `block_size` elements take `type_size` bytes."""

    name: str
    block_size: int
    type_size: int


TENSOR_TYPES: Final = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    9: TensorType("Q8_1", 32, 36),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    15: TensorType("Q8_K", 256, 292),
    16: TensorType("IQ2_XXS", 256, 66),
    17: TensorType("IQ2_XS", 256, 74),
    18: TensorType("IQ3_XXS", 256, 98),
    19: TensorType("IQ1_S", 256, 50),
    20: TensorType("IQ4_NL", 32, 18),
    21: TensorType("IQ3_S", 256, 110),
    22: TensorType("IQ2_S", 256, 82),
    23: TensorType("IQ4_XS", 256, 136),
    24: TensorType("I8", 1, 1),
    25: TensorType("I16", 1, 2),
    26: TensorType("I32", 1, 4),
    27: TensorType("I64", 1, 8),
    28: TensorType("F64", 1, 8),
    29: TensorType("IQ1_M", 256, 56),
    30: TensorType("BF16", 1, 2),
    34: TensorType("TQ1_0", 256, 54),
    35: TensorType("TQ2_0", 256, 66),
    39: TensorType("MXFP4", 32, 17),
    40: TensorType("NVFP4", 64, 36),
    41: TensorType("Q1_0", 128, 18),
    42: TensorType("Q2_0", 64, 18),
}

# `general.file_type`: how most of the weights are stored (enum llama_ftype). GUESSED is a flag.
FILE_TYPE_GUESSED: Final = 1024
FILE_TYPES: Final = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4_MOE",
    39: "NVFP4",
    40: "Q1_0",
    41: "Q2_0",
}
