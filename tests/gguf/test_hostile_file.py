"""Files made to harm the reader: every one ends as `InvalidGGUF`, at a bounded cost."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rocllm.errors import InvalidGGUF
from rocllm.gguf import ArrayInfo, GGUFFile, model_info, read_gguf
from rocllm.gguf.constants import (
    ARRAY,
    MAX_KEPT,
    MAX_KEYS,
    MAX_STRINGS,
    MAX_TENSORS,
    SMALL_ARRAY,
    STRING,
    VALUE_TYPES,
)
from rocllm.gguf.reader import parse_gguf
from rocllm.gguf.types import ByteOrder
from rocllm.testing.gguf_writer import (
    Tensor,
    Typed,
    Value,
    encode_header,
    encode_string,
    encode_value,
    write_gguf,
)
from rocllm.testing.tiny_models import tiny_llama

MOST_MEMORY = 64 * 2**20
# How fast this machine is today is no business of these tests.
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
LARGE = (2**63, 2**64 - 1, 2**63 - 1, 2**62, 2**40, 2**32)


class Reads:
    """Bytes to parse that count how much of them was read."""

    def __init__(self, contents: bytes) -> None:
        self.contents = contents
        self.n_bytes = 0

    def __call__(self, offset: int, n_bytes: int) -> bytes:
        part = self.contents[offset : offset + n_bytes]
        self.n_bytes += len(part)
        return part


def parse(contents: bytes) -> GGUFFile:
    return parse_gguf(Reads(contents), len(contents), Path("hostile.gguf"))


def value_head(type_id: int, *counts: int) -> bytes:
    """One key, the type of its value, and the counts that begin it."""
    head = encode_header(n_keys=1) + encode_string("k") + struct.pack("<I", type_id)
    return head + b"".join(struct.pack("<Q", count) for count in counts)


def lying_headers() -> Iterator[bytes]:
    """Headers of a few bytes that promise a lot."""
    for count in LARGE:
        yield encode_header(n_keys=count)
        yield encode_header(n_tensors=count)
        yield encode_header(n_keys=count, n_tensors=count)
        yield encode_header(n_keys=1) + struct.pack("<Q", count)
        yield value_head(STRING, count)
        yield encode_header(n_tensors=1) + struct.pack("<Q", count)
        for type_id in VALUE_TYPES:
            yield value_head(ARRAY) + struct.pack("<IQ", type_id, count)
        yield value_head(ARRAY) + struct.pack("<IQQ", STRING, 2000, count)
        yield encode_header({}, [Tensor("t", (count, count, count, count), n_bytes=0)])
        yield encode_header({}, [Tensor("t", (32,), offset=count)])


@pytest.mark.parametrize("padding", [0, 100_000])
def test_promises_are_not_believed(padding: int) -> None:
    """Counts and lengths that the file cannot hold cost next to nothing."""
    tracemalloc.start()
    for header in lying_headers():
        with pytest.raises(InvalidGGUF):
            parse(header + bytes(padding))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20


def many_tensors() -> bytes:
    """As many tensors as are allowed, none of them empty."""
    tensors = [Tensor(f"{number:063}", (1, 1, 1, 1), "I8") for number in range(MAX_TENSORS)]
    return encode_header({}, tensors) + bytes(MAX_TENSORS * 32 + 32)


def many_keys() -> bytes:
    """As many keys as are allowed, each with as many numbers as are read unasked."""
    value = encode_value([float("nan")] * SMALL_ARRAY)
    return encode_header(n_keys=MAX_KEYS) + b"".join(
        encode_string(f"{number}") + value for number in range(MAX_KEYS)
    )


def long_texts() -> bytes:
    """Strings that take four times their size in memory."""
    value = encode_value("x" * (2**20 - 4) + "🦙")
    return encode_header(n_keys=40) + b"".join(
        encode_string(f"{number}") + value for number in range(40)
    )


def long_keys() -> bytes:
    """Keys of the greatest length."""
    return encode_header(n_keys=2000) + b"".join(
        encode_string(f"{number:065535}") + encode_value(number) for number in range(2000)
    )


@pytest.mark.parametrize(
    "make", [many_tensors, many_keys, long_texts, long_keys], ids=lambda make: make.__name__
)
def test_large_files_cost_a_bounded_amount_of_memory(make: Callable[[], bytes]) -> None:
    """Files that are as large as they say, and made of what is dearest to read."""
    contents = make()
    tracemalloc.start()
    try:
        gguf = parse(contents)
    except InvalidGGUF:
        assert make is not many_tensors
    else:
        assert len(gguf.tensors) == MAX_TENSORS
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MOST_MEMORY


def test_strings_are_counted_over_all_arrays(tmp_path: Path) -> None:
    """The time to step over strings is bounded for the file, not for an array."""
    path = tmp_path / "m.gguf"
    array = struct.pack("<IIQ", ARRAY, STRING, MAX_STRINGS // 2)
    path.write_bytes(
        encode_header(n_keys=3)
        + b"".join(encode_string(key) + array + bytes(4 * MAX_STRINGS) for key in "abc")
    )
    with pytest.raises(InvalidGGUF, match=f"more than {MAX_STRINGS} strings") as caught:
        read_gguf(path)
    assert "the value of 'c'" in caught.value.what


def test_a_huge_file_of_nothing_is_given_up(tmp_path: Path) -> None:
    """A sparse file has room for any number of empty strings."""
    path = tmp_path / "huge.gguf"
    path.write_bytes(value_head(ARRAY) + struct.pack("<IQ", STRING, 2**36))
    with path.open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(InvalidGGUF, match=f"more than {MAX_STRINGS} strings"):
        read_gguf(path)


def test_long_strings_in_a_huge_file_are_not_followed_for_ever() -> None:
    """Strings of many bytes each are stepped over up to a bound, reading little."""
    contents = value_head(ARRAY) + struct.pack("<IQ", STRING, 2000)
    step = struct.pack("<Q", 2**20)

    def read_at(offset: int, n_bytes: int) -> bytes:
        window = step if offset else contents + step
        return window.ljust(n_bytes, b"\0")

    with pytest.raises(InvalidGGUF, match="before the tensors' data"):
        parse_gguf(read_at, 2**40, Path("huge.gguf"))


def test_arrays_that_were_asked_for_are_bounded(tmp_path: Path) -> None:
    """Asking for an array does not lift the bound on memory."""
    path = write_gguf(tmp_path / "m.gguf", {"k": Typed("uint8", [0] * (MAX_KEPT // 40 + 1))})
    assert isinstance(read_gguf(path).metadata["k"], ArrayInfo)
    with pytest.raises(InvalidGGUF, match="ask for fewer arrays"):
        read_gguf(path, arrays=["k"])


def test_a_file_that_shrinks_while_it_is_read() -> None:
    """A read that comes back short ends as an error, not as a crash."""
    contents = encode_header({"a": ["x"] * 200_000})

    def read_at(offset: int, n_bytes: int) -> bytes:
        return contents[offset : offset + n_bytes] if offset < 1000 else b""

    with pytest.raises(InvalidGGUF, match="was cut while it was read"):
        parse_gguf(read_at, len(contents), Path("shrinking.gguf"))


def small_file(byte_order: ByteOrder) -> bytes:
    """A sound file with something of everything."""
    metadata, tensors = tiny_llama(n_layers=1, weight_type="Q8_0")
    metadata = {
        key: value for key, value in metadata.items() if not key.startswith("tokenizer")
    } | {
        "tokenizer.ggml.tokens": ["token"] * 1100,
        "tokenizer.ggml.scores": [0.5] * 1100,
        "llama.attention.sliding_window_pattern": [True],
        "llama.attention.head_count_kv": [2],
        "general.alignment": 64,
        "split.no": Typed("uint16", 0),
        "split.count": Typed("uint16", 1),
    }
    header = encode_header(metadata, tensors, byte_order=byte_order, alignment=64)
    return header + bytes(128 + sum(tensor.size + 64 for tensor in tensors))


@pytest.mark.parametrize("byte_order", ["little", "big"])
def test_mutations_end_as_a_file_or_as_invalid(byte_order: ByteOrder) -> None:
    """Bytes flipped, put in, taken out and cut: no other error, and no more memory."""
    original = small_file(byte_order)
    end_of_header = len(original) - 128
    interesting = (b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7, struct.pack("<Q", 2**40))
    accepted = 0
    tracemalloc.start()
    for seed in range(800):
        source = random.Random(seed)
        mutant = bytearray(original)
        for _ in range(source.choice((1, 1, 1, 2, 5))):
            # Half of them where the counts, keys and tensors are; the strings are boring.
            at = source.randrange(source.choice((40, 1000, end_of_header)))
            match source.randrange(5):
                case 0:
                    mutant[at] ^= 1 << source.randrange(8)
                case 1:
                    mutant[at] = source.randrange(256)
                case 2:
                    mutant[at : at + 8] = source.choice(interesting)
                case 3:
                    del mutant[at : at + source.choice((1, 4, 8))]
                case 4:
                    mutant[at:at] = source.randbytes(source.choice((1, 4, 8)))
        accepted += _survives(bytes(mutant))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 50 < accepted < 750  # both ends are reached
    assert peak < MOST_MEMORY


@UNTIMED
@given(st.binary(max_size=300))
def test_noise_behind_a_header_is_handled(noise: bytes) -> None:
    """Random bytes where keys and tensors are promised."""
    for version in (2, 0x03000000):
        _survives(b"GGUF" + struct.pack("<I", version) + noise)
        _survives(encode_header(n_keys=2, n_tensors=1) + noise)


def _survives(contents: bytes) -> bool:
    try:
        gguf = parse(contents)
        for tensor in gguf.tensors:
            assert tensor.offset + (tensor.n_bytes or 0) <= len(contents)
        model_info(gguf)
    except InvalidGGUF:
        return False
    return True


ELEMENTS = (
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(width=32, allow_nan=False),
    st.text(max_size=20),
)
VALUES = st.one_of(
    *ELEMENTS,
    st.integers(2**63, 2**64 - 1),
    *(st.lists(element, max_size=20) for element in ELEMENTS),
)
TENSORS = st.builds(
    lambda name, shape, type_: Tensor(name, (256 * shape[0], *shape[1:]), type_),
    st.text(max_size=15),
    st.lists(st.integers(0, 3), min_size=1, max_size=4),
    st.sampled_from(["F32", "F16", "Q4_0", "Q6_K", "IQ1_S", "MXFP4", "I8"]),
)


@UNTIMED
@given(
    metadata=st.dictionaries(
        st.text(min_size=1, max_size=20).filter(lambda key: key != "general.alignment"), VALUES
    ),
    tensors=st.lists(TENSORS, max_size=5, unique_by=lambda tensor: tensor.name),
    version=st.sampled_from([2, 3]),
    byte_order=st.sampled_from(["little", "big"]),
)
def test_what_is_written_is_read(
    metadata: dict[str, Value], tensors: list[Tensor], version: int, byte_order: ByteOrder
) -> None:
    """Any metadata and any tensors come back as they were."""
    header = encode_header(metadata, tensors, version=version, byte_order=byte_order)
    gguf = parse(header + bytes(100 + sum(tensor.size + 32 for tensor in tensors)))
    assert (gguf.version, gguf.byte_order) == (version, byte_order)
    expected = {k: tuple(v) if isinstance(v, list) else v for k, v in metadata.items()}
    assert gguf.metadata == expected
    assert [(tensor.name, tensor.shape, tensor.n_bytes) for tensor in gguf.tensors] == [
        (tensor.name, tensor.shape, tensor.size) for tensor in tensors
    ]
