"""From a path or a name to a model file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rocllm.catalog import DEMO, list_models, resolve_model
from rocllm.errors import ModelNotFound


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with models in it."""
    folder = tmp_path / "models"
    folder.mkdir()
    names = ["qwen3-4b.gguf", "qwen3-8b.gguf", "gemma.gguf", "Gemma-2.GGUF", "notes.txt"]
    names += ["mistral-small-24b-Q4_K_M.gguf"]
    names += [f"big-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    for name in names:
        (folder / name).touch()
    (folder / "folder.gguf").mkdir()
    return folder


@pytest.fixture
def environ(tmp_path: Path, folder: Path) -> dict[str, str]:
    """`ROCM_MODEL_DIR` names the folder, and one that is not there."""
    return {"HOME": str(tmp_path / "home"), "ROCM_MODEL_DIR": f"{folder}:/does/not/exist"}


def test_a_path_is_taken_as_it_is(
    folder: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Absolute, relative, in the home, as `Path`, without a suffix: always an absolute path."""
    file = folder / "notes.txt"
    monkeypatch.chdir(folder)
    assert resolve_model(str(file), environ) == file
    assert resolve_model(file, environ) == file
    assert resolve_model("./notes.txt", environ) == file
    assert resolve_model("notes.txt", environ) == file
    assert resolve_model(Path("notes.txt"), environ) == file
    assert resolve_model("~/notes.txt", environ | {"HOME": str(folder)}) == file


def test_a_symbolic_link_keeps_its_name(folder: Path, environ: dict[str, str]) -> None:
    """The files of a split model are found by name next to the first, not next to its target."""
    link = folder / "link.gguf"
    link.symlink_to("gemma.gguf")
    assert resolve_model(link, environ) == link


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("gemma", "gemma.gguf"),
        ("gemma.gguf", "gemma.gguf"),
        ("Gemma-2", "Gemma-2.GGUF"),
        ("gemma-", "Gemma-2.GGUF"),
        ("qwen3-8", "qwen3-8b.gguf"),
        ("QWEN3-4B", "qwen3-4b.gguf"),
        ("big", "big-00001-of-00003.gguf"),
    ],
)
def test_names(name: str, file: str, folder: Path, environ: dict[str, str]) -> None:
    """The exact name wins; the beginning of a name will do when it is the only one."""
    assert resolve_model(name, environ) == folder / file


def test_an_ambiguous_beginning_lists_the_candidates(environ: dict[str, str]) -> None:
    """Nothing is guessed between two models."""
    with pytest.raises(ModelNotFound, match="beginning of several") as caught:
        resolve_model("qwen", environ)
    assert caught.value.why == "qwen3-4b, qwen3-8b"


def test_two_names_of_one_file_are_not_two_models(folder: Path, environ: dict[str, str]) -> None:
    """A link beside a model makes none of their common beginnings ambiguous."""
    (folder / "gemma-2-latest.gguf").symlink_to("Gemma-2.GGUF")
    assert resolve_model("gemma-", environ) == folder / "Gemma-2.GGUF"


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("gema", "did you mean 'gemma'?"),
        ("gema.gguf", "did you mean 'gemma'?"),
        ("demmo", "did you mean 'demo'?"),
        ("mistrall", "did you mean 'mistral-small-24b-Q4_K_M'?"),
        ("something else", "give the path of a .gguf file, or one of these names: demo, Gemma-2,"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(
    name: str, remedy: str, folder: Path, environ: dict[str, str]
) -> None:
    """The message names what was asked for, each folder that was searched, and the next step."""
    with pytest.raises(ModelNotFound, match=f"no model '{name}'") as caught:
        resolve_model(name, environ)
    assert caught.value.remedy is not None
    assert caught.value.remedy.startswith(remedy)
    for searched in (str(folder), "/does/not/exist (no such directory)", environ["HOME"]):
        assert searched in str(caught.value.why)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("./none.gguf", "No such file"),
        ("./none/model.gguf", "No such file"),
        ("./notes.txt/model.gguf", "Not a directory"),
        ("./broken.gguf", "symbolic link to 'nowhere'"),
        ("broken.gguf", "symbolic link to 'nowhere'"),
        ("./nul\0.gguf", "null byte"),
        ("/" + "x" * 5000, "File name too long"),
        ("/dev/null", "not a regular file"),
    ],
)
def test_a_wrong_path_says_what_is_wrong_with_it(
    path: str,
    why: str,
    folder: Path,
    environ: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The system's own reason is part of the message, and there is a next step."""
    monkeypatch.chdir(folder)
    (folder / "broken.gguf").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match=why) as caught:
        resolve_model(path, environ)
    assert isinstance(caught.value, ModelNotFound)
    assert repr(path) in caught.value.what
    assert caught.value.remedy


def test_a_misspelt_path_suggests_its_neighbour(folder: Path, environ: dict[str, str]) -> None:
    """Names next to the path count first."""
    with pytest.raises(ModelNotFound, match=r"did you mean 'qwen3-8b\.gguf'"):
        resolve_model(folder / "qwne3-8b.gguf", environ)


def test_a_directory_lists_its_models(folder: Path, environ: dict[str, str]) -> None:
    """A directory is refused with the files that could be meant."""
    with pytest.raises(ModelNotFound, match="is a directory") as caught:
        resolve_model(folder, environ)
    assert "mistral-small-24b-Q4_K_M.gguf, qwen3-4b.gguf" in str(caught.value.why)
    assert str(folder / "Gemma-2.GGUF") in str(caught.value.remedy)
    (folder / "empty").mkdir()
    with pytest.raises(ModelNotFound, match=r"holds no \.gguf file"):
        resolve_model(folder / "empty", environ)


def test_no_name_at_all(environ: dict[str, str]) -> None:
    """An empty name is not the current directory."""
    with pytest.raises(ModelNotFound, match="no model was named") as caught:
        resolve_model("", environ)
    assert str(caught.value.remedy).startswith("give the path of a .gguf file, or one of these")


def test_the_first_folder_counts(tmp_path: Path, environ: dict[str, str]) -> None:
    """Of files with one name the earlier folder's is used; rocllm's own folder comes last."""
    own = tmp_path / "home/.local/share/rocllm/models"
    own.mkdir(parents=True)
    for name in ("gemma.gguf", "mine.gguf"):
        (own / name).touch()
    models = list_models(environ)
    assert [path.name for path in models].count("gemma.gguf") == 1
    assert resolve_model("gemma", environ) != own / "gemma.gguf"
    assert resolve_model("mine", environ) == own / "mine.gguf"


def test_demo_says_how_to_fetch_it(
    folder: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is fetched, the demo model is an error with the command to type.

    A directory that happens to be called `demo` changes nothing, nor does a file cut short.
    """
    monkeypatch.chdir(folder)
    (folder / "demo").mkdir()
    (folder / DEMO.file_name).write_bytes(b"GGUF")
    with pytest.raises(ModelNotFound, match="not been fetched") as caught:
        resolve_model("demo", environ)
    assert caught.value.remedy == "rocllm pull demo"


def test_demo_is_found(demo_model: Path, environ: dict[str, str]) -> None:
    """Once fetched, it is found in rocllm's data directory, or in a folder of the user's."""
    assert resolve_model("demo", os.environ).samefile(demo_model)
    environ["ROCM_MODEL_DIR"] += f":{demo_model.parent}"
    assert resolve_model("demo", environ) == demo_model
