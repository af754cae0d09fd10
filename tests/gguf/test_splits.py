"""Models in several files."""

from __future__ import annotations

from pathlib import Path

import pytest

from rocllm.errors import InvalidGGUF, ModelNotFound
from rocllm.gguf import Split, read_gguf, read_model_info, read_splits, split_paths
from rocllm.testing.gguf_writer import Typed, Value, write_gguf
from rocllm.testing.tiny_models import tiny_llama


def write_splits(folder: Path, *, tensor_count: int | None = None) -> list[Path]:
    """The tiny model in three files, as gguf-split writes them."""
    metadata, tensors = tiny_llama()
    paths = []
    for no in range(3):
        keys: dict[str, Value] = {
            "split.no": Typed("uint16", no),
            "split.count": Typed("uint16", 3),
            "split.tensors.count": Typed("int32", tensor_count or len(tensors)),
        }
        path = folder / f"tiny-{no + 1:05}-of-00003.gguf"
        part = tensors[no * 7 : (no + 1) * 7 if no < 2 else None]
        paths.append(write_gguf(path, keys | metadata if no == 0 else keys, part))
    return paths


def test_the_parts_make_the_model(tmp_path: Path) -> None:
    """Whichever part is given, the model is that of the whole file."""
    metadata, tensors = tiny_llama()
    whole = read_model_info(write_gguf(tmp_path / "tiny.gguf", metadata, tensors))
    paths = write_splits(tmp_path)
    for path in paths:
        info = read_model_info(path)
        assert info.split_count == 3
        assert info.file_size == sum(part.stat().st_size for part in paths)
        assert info.parameter_count == whole.parameter_count
        assert info.tensor_bytes == whole.tensor_bytes
        assert [tensor.name for tensor in info.tensors] == [tensor.name for tensor in whole.tensors]
        assert (info.block_count, info.vocab_size) == (whole.block_count, whole.vocab_size)


def test_a_part_knows_that_it_is_one(tmp_path: Path) -> None:
    """The keys say so; a model in one file says nothing, or one of one."""
    paths = write_splits(tmp_path)
    assert read_gguf(paths[1]).split == Split(no=1, count=3, tensor_count=20)
    one = {"split.no": 0, "split.count": 1}
    assert read_gguf(write_gguf(tmp_path / "one.gguf", one)).split is None
    odd = {"split.no": "a", "split.count": "b"}
    assert read_gguf(write_gguf(tmp_path / "odd.gguf", odd)).split is None


def test_missing_parts_are_named(tmp_path: Path) -> None:
    """An incomplete download says which files to fetch."""
    paths = write_splits(tmp_path)
    paths[0].unlink()
    paths[2].unlink()
    with pytest.raises(ModelNotFound, match="2 are missing") as caught:
        read_splits(paths[1])
    assert "tiny-00001-of-00003.gguf, tiny-00003-of-00003.gguf" in str(caught.value)


def test_a_part_of_another_model(tmp_path: Path) -> None:
    """A part that was mixed up is noticed by its number, its count or its tensors."""
    paths = write_splits(tmp_path)
    paths[2].write_bytes(paths[1].read_bytes())
    with pytest.raises(InvalidGGUF, match="do not belong together"):
        read_splits(paths[0])
    with pytest.raises(InvalidGGUF, match="hold 20 tensors; 21 belong to the model"):
        read_splits(write_splits(tmp_path, tensor_count=21)[0])


@pytest.mark.parametrize(
    "name", ["renamed.gguf", "tiny-00002-of-00003.gguf", "tiny-00001-of-00004.gguf"]
)
def test_a_part_under_another_name(tmp_path: Path, name: str) -> None:
    """The other parts are found by name, so a part that was renamed cannot be loaded."""
    path = write_splits(tmp_path)[0].rename(tmp_path / name)
    with pytest.raises(InvalidGGUF, match=r"give it its name back: …-00001-of-00003\.gguf"):
        read_splits(path)


@pytest.mark.parametrize("no", [-1, 3, 2**31 - 1])
def test_a_number_that_cannot_be(tmp_path: Path, no: int) -> None:
    """A file that claims to be part 0 or 4 of 3."""
    metadata = {"split.no": Typed("int32", no), "split.count": Typed("uint16", 3)}
    path = write_gguf(tmp_path / "m-00001-of-00003.gguf", metadata)
    with pytest.raises(InvalidGGUF):
        read_splits(path)


@pytest.mark.parametrize(
    "name", ["m.gguf", "m-00000-of-00002.gguf", "m-00003-of-00002.gguf", "-00001-of-00002.gguf"]
)
def test_names_of_models_in_one_file(name: str) -> None:
    """A name that does not follow the pattern is the only part."""
    assert split_paths(f"a/{name}") == (Path("a") / name,)
