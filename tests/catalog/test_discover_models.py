"""Finding every model on a machine, in real stores with real files."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import pytest

import rocllm
from rocllm.catalog import DiscoveredModel, discover, discover_models, resolve_model, sources
from rocllm.errors import ModelNotFound
from rocllm.testing.gguf_writer import Typed, write_gguf
from rocllm.testing.tiny_models import tiny_llama, tiny_vocabulary

WriteModel: TypeAlias = Callable[..., Path]

_HASH = "a" * 64
_OTHER_HASH = "b" * 64


def _by_name(found: tuple[DiscoveredModel, ...]) -> dict[str, DiscoveredModel]:
    models = {model.name: model for model in found}
    assert len(models) == len(found)
    return models


def _discover(environ: Mapping[str, str], *folders: Path) -> dict[str, DiscoveredModel]:
    return _by_name(discover_models(environ, folders))


def test_what_is_told_of_a_model(
    tmp_path: Path, environ: dict[str, str], write_model: WriteModel
) -> None:
    """Everything comes out of the file, nothing out of its name."""
    path = write_model(
        tmp_path / "a" / "some-F32.gguf",
        "Q8_0",
        **{"general.size_label": "tiny", "tokenizer.chat_template": "{{ messages }}"},
    )
    (model,) = discover_models(environ, [tmp_path / "a"])
    assert model.path == path
    assert model.parts == (path,)
    assert model.names == ("some-F32",)
    assert (model.source, model.problem) == ("folder", None)
    assert model.file_size == path.stat().st_size
    assert (model.architecture, model.size_label) == ("llama", "tiny")
    assert model.parameter_count == sum(
        math.prod(tensor.shape) for tensor in tiny_llama(n_layers=1)[1]
    )
    assert (model.quantization, model.context_length) == ("Q8_0", 512)
    assert model.chat_template is True
    assert (model.mmproj, model.adapters) == ((), ())


def test_order_of_the_stores(
    tmp_path: Path, environ: dict[str, str], write_model: WriteModel
) -> None:
    """Given folders come first, then those of the environment, rocllm's own, other programs'."""
    home = tmp_path / "home"
    environ["ROCM_MODEL_DIR"] = f"{tmp_path / 'one'}:{tmp_path / 'two'}"
    places = {
        "given": tmp_path / "given",
        "one": tmp_path / "one",
        "two": tmp_path / "two/deep/down",
        "own": home / ".local/share/rocllm/models",
        "hub": home / ".cache/huggingface/hub/models--user--repo/snapshots/c0ffee",
        "llama": home / ".cache/llama.cpp",
        "studio": home / ".lmstudio/models/publisher/repo",
    }
    for name, folder in reversed(places.items()):
        write_model(folder / f"{name}.gguf")
    found = discover_models(environ, [tmp_path / "given"])
    assert [model.name for model in found] == list(places)
    assert [model.source for model in found] == [
        *("folder", "folder", "folder", "rocllm", "huggingface", "llama.cpp", "lmstudio")
    ]
    assert all(resolve_model(name, environ).stem == name for name in list(places)[1:])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, value)
        assert rocllm.discover_models(folders=[tmp_path / "given"]) == found


def test_hugging_face_cache(
    tmp_path: Path, environ: dict[str, str], write_model: WriteModel, write_other: WriteModel
) -> None:
    """Files are called by the repository's name, too; of several revisions the current counts."""
    environ["HF_HOME"] = str(tmp_path / "hf")
    repo = tmp_path / "hf/hub/models--user--some-repo"
    for number, commit in enumerate(("aaa", "bbb")):
        folder = repo / "snapshots" / commit
        blob = write_model(repo / "blobs" / f"{number}", n_layers=1 + number)
        (folder / "Q4_0").mkdir(parents=True)
        (folder / "Q4_0/m-Q4_0.gguf").symlink_to(blob)
    (repo / "snapshots/bbb/gone-Q8_0.gguf").symlink_to("../../blobs/none")
    write_other(repo / "snapshots/bbb/mmproj-F32.gguf", "mmproj", "clip")
    write_other(repo / "snapshots/bbb/mmproj-F16.gguf", "mmproj", "clip")
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text("bbb")
    models = _discover(environ)
    assert set(models) == {"m-Q4_0", "gone-Q8_0"}
    model = models["m-Q4_0"]
    assert model.names == (
        "m-Q4_0",
        "user/some-repo:Q4_0",
        "user/some-repo/Q4_0/m-Q4_0.gguf",
    )
    assert model.path == repo / "snapshots/bbb/Q4_0/m-Q4_0.gguf"
    assert [path.name for path in model.mmproj] == ["mmproj-F16.gguf", "mmproj-F32.gguf"]
    assert "symbolic link to '../../blobs/none'" in str(models["gone-Q8_0"].problem)
    for name in ("user/some-repo", "user/some-repo:q4_0", "hf:user/some-repo/Q4_0/m-Q4_0.gguf"):
        assert resolve_model(name, environ) == model.path
    with pytest.raises(ModelNotFound, match="not been fetched") as caught:
        resolve_model("hf:user/other", environ)
    assert str(caught.value.remedy).startswith("rocllm pull hf:user/other; or,")


def _ollama(environ: Mapping[str, str], name: str, content: object) -> Path:
    manifest = Path(environ["OLLAMA_MODELS"]) / "manifests" / name
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(content if isinstance(content, str) else json.dumps(content))
    return manifest


def _layers(**digests: str) -> dict[str, object]:
    return {
        "layers": [
            {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{digest}"}
            for kind, digest in digests.items()
        ]
    }


def test_a_name_means_one_file(
    tmp_path: Path, environ: dict[str, str], write_model: WriteModel
) -> None:
    """What two publishers call the same is the first's; the other is called by its repository."""
    hub = tmp_path / "home/.cache/huggingface/hub"
    first, second = (
        write_model(hub / f"models--{user}--m-GGUF/snapshots/abc/m-Q4_0.gguf")
        for user in ("ann", "bob")
    )
    copy = write_model(tmp_path / "home/.cache/llama.cpp/m-Q4_0.gguf")
    whole = "m-Q4_0", "ann/m-GGUF:Q4_0", "ann/m-GGUF/m-Q4_0.gguf"
    names = [model.names for model in discover_models(environ)]
    assert names == [whole, ("bob/m-GGUF:Q4_0", "bob/m-GGUF/m-Q4_0.gguf"), ()]
    assert discover_models(environ)[2].name == str(copy)
    for name in ("m-Q4_0", "M-q4_0", "m", "m:Q4_0", "hf:ann/m-GGUF"):
        assert resolve_model(name, environ) == first
    for name in ("hf:bob/m-GGUF", "bob/m-GGUF:q4_0", "bob/m-GGUF/m-Q4_0.gguf"):
        assert resolve_model(name, environ) == second


def test_ollama(environ: dict[str, str], write_model: WriteModel, write_other: WriteModel) -> None:
    """Blobs go by the names of Ollama's manifests, with projector and adapter."""
    blobs = Path(environ["OLLAMA_MODELS"]) / "blobs"
    blob = write_model(blobs / f"sha256-{_HASH}")
    projector = write_other(blobs / f"sha256:{_OTHER_HASH}", "mmproj", "clip")
    library = "registry.ollama.ai/library"
    _ollama(environ, f"{library}/llama3.2/3b", _layers(template="c" * 64, model=_HASH))
    _ollama(environ, f"{library}/llama3.2/latest", _layers(model=_HASH))
    _ollama(environ, "registry.ollama.ai/ann/mine/v1", _layers(model=_HASH))
    _ollama(environ, "hf.co/user/repo/Q4_0", _layers(model=_HASH, projector=_OTHER_HASH))
    (model,) = discover_models(environ)
    assert model.path == blob
    names = ("llama3.2", "llama3.2:latest", "llama3.2:3b", "ann/mine:v1", "hf.co/user/repo:Q4_0")
    assert set(model.names) == set(names)
    assert model.source == "ollama"
    assert (model.architecture, model.problem) == ("llama", None)
    for name in names:
        assert resolve_model(name, environ) == blob
    # Also where another manifest, or a link in a folder, leads to the same file first.
    assert model.mmproj == (projector,)
    (blobs.parent / "link").mkdir()
    (blobs.parent / "link/mine.gguf").symlink_to(blob)
    (linked,) = discover_models(environ, [blobs.parent / "link"])
    assert (linked.names[0], linked.mmproj) == ("mine", (projector,))


@pytest.mark.parametrize(
    ("manifest", "problem"),
    [
        ("not json", "it is not an Ollama manifest"),
        ("[]", "it is not an Ollama manifest"),
        ("[" * 100_000, "it is not an Ollama manifest"),
        ({"layers": [{"mediaType": 3, "digest": None}]}, "it is not an Ollama manifest"),
        ({"layers": []}, "its manifest names no GGUF file"),
        (_layers(model="../../../etc/passwd"), "its manifest names no GGUF file"),
        (_layers(model=_HASH), "the file that its manifest names is missing"),
    ],
)
def test_a_bad_ollama_manifest(manifest: object, problem: str, environ: dict[str, str]) -> None:
    """It is listed with the reason, whatever stands in it, and loading by its name says it."""
    path = _ollama(environ, "registry.ollama.ai/library/bad/latest", manifest)
    (model,) = discover_models(environ)
    assert (model.path, model.names, model.problem) == (path, ("bad:latest", "bad"), problem)
    with pytest.raises(ModelNotFound, match="cannot be used") as caught:
        resolve_model("bad", environ)
    assert problem in str(caught.value.why)


def test_lm_studio_where_its_settings_say(
    tmp_path: Path, environ: dict[str, str], write_model: WriteModel
) -> None:
    """The home that LM Studio's pointer names, and the folder in its settings; junk is ignored."""
    home = Path(environ["HOME"])
    (home / ".lmstudio").mkdir(parents=True)
    (home / ".lmstudio/settings.json").write_text("[1, 2")
    (home / ".lmstudio-home-pointer").write_text(f"{tmp_path / 'studio'}\n")
    (tmp_path / "studio").mkdir()
    settings = {"downloadsFolder": str(tmp_path / "downloads")}
    (tmp_path / "studio/settings.json").write_text(json.dumps(settings))
    write_model(tmp_path / "studio/models/p/r/one.gguf")
    write_model(tmp_path / "downloads/p/r/two.gguf")
    assert set(_discover(environ)) == {"one", "two"}


def test_parts_are_one_model(
    tmp_path: Path, environ: dict[str, str], write_model: WriteModel
) -> None:
    """Parts are joined by name and checked; one that is missing is named."""
    metadata, tensors = tiny_llama(n_layers=2)
    for number in range(3):
        split = {
            "split.no": Typed("uint16", number),
            "split.count": Typed("uint16", 3),
            "split.tensors.count": Typed("int32", len(tensors)),
        }
        write_gguf(
            tmp_path / f"big-Q8_0-{number + 1:05}-of-00003.gguf",
            (metadata if number == 0 else {}) | split,
            tensors[number::3],
        )
    (model,) = discover_models(environ, [tmp_path])
    assert (model.name, len(model.parts), model.problem) == ("big-Q8_0", 3, None)
    assert model.file_size == sum(part.stat().st_size for part in model.parts)
    environ["ROCM_MODEL_DIR"] = str(tmp_path)
    assert resolve_model("big:q8_0", environ) == model.parts[0]
    model.parts[1].unlink()
    (model,) = discover_models(environ, [tmp_path])
    assert "big-Q8_0-00002-of-00003.gguf" in str(model.problem)
    model.parts[0].unlink()
    (model,) = discover_models(environ, [tmp_path])
    assert model.problem


def test_projectors_and_adapters(
    tmp_path: Path, environ: dict[str, str], write_model: WriteModel, write_other: WriteModel
) -> None:
    """They stand beside the models they fit; one that fits none is listed with the reason."""
    one, mixed = tmp_path / "one", tmp_path / "mixed"
    for quantization in ("Q4_0", "Q8_0"):
        write_model(one / f"gemma-{quantization}.gguf", quantization)
    write_other(one / "mmproj-model-f16.gguf", "mmproj", "clip")
    write_other(one / "lora.gguf", "adapter")
    write_other(one / "lora-qwen.gguf", "adapter", "qwen3")
    write_model(mixed / "gemma-3-4b-it-Q4_0.gguf")
    write_model(mixed / "qwen3-8b.gguf")
    write_other(mixed / "mmproj-gemma-3-4b-it-F16.gguf", "mmproj", "clip")
    write_other(mixed / "mmproj-F16.gguf", "mmproj", "clip")
    models = _discover(environ, one, mixed)
    for name in ("gemma-Q4_0", "gemma-Q8_0"):
        assert models[name].mmproj == (one / "mmproj-model-f16.gguf",)
        assert models[name].adapters == (one / "lora.gguf",)
    gemma, qwen = models["gemma-3-4b-it-Q4_0"], models["qwen3-8b"]
    assert gemma.mmproj == (mixed / "mmproj-gemma-3-4b-it-F16.gguf",)
    assert qwen.mmproj == ()
    assert "no qwen3 model" in str(models["lora-qwen"].problem)
    assert "no model beside it" in str(models["mmproj-F16"].problem)
    assert len(models) == 6


def test_broken_files_are_listed(
    tmp_path: Path, environ: dict[str, str], write_model: WriteModel
) -> None:
    """Whatever is in a folder, each entry that ends in .gguf is listed, with what is wrong."""
    folder = tmp_path / "m"
    good = write_model(folder / "good.gguf")
    content = good.read_bytes()
    (folder / "cut.gguf").write_bytes(content[:-1000])
    (folder / "empty.gguf").touch()
    (folder / "page.gguf").write_text("<!DOCTYPE html><html>")
    (folder / "zeros.gguf").write_bytes(bytes(5000))
    write_gguf(folder / "words.gguf", tiny_llama()[0] | tiny_vocabulary())
    write_gguf(folder / "nothing.gguf", {"some": "key"})
    (folder / "loop.gguf").symlink_to("loop.gguf")
    (folder / "dangling.gguf").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.gguf")
    models = _discover(environ, folder)
    problems = {name: str(model.problem) for name, model in models.items() if model.problem}
    expected = {
        "cut": "belong to it",
        "empty": "empty",
        "page": "a web page",
        "zeros": "zeros",
        "words": "a vocabulary and no weights",
        "nothing": "every model needs this key",
        "loop": "Too many levels of symbolic links",
        "dangling": "symbolic link to 'nowhere'",
        "pipe": "it is a pipe",
    }
    assert set(problems) == set(expected)
    for name, words in expected.items():
        assert words in problems[name]
    assert models["good"].problem is None
    assert models["words"].architecture == "llama"


def test_folders_of_any_shape(
    tmp_path: Path, environ: dict[str, str], write_model: WriteModel
) -> None:
    """Links in circles, a folder called x.gguf, names of any bytes: each model once."""
    folder = tmp_path / "m"
    write_model(folder / "x.gguf" / "inside.gguf")
    (folder / "x.gguf" / "back").symlink_to(folder)
    (folder / "again").symlink_to(folder / "x.gguf")
    write_model(folder / "new\nline.gguf")
    write_model(folder / os.fsdecode(b"\xff\xfe.gguf"))
    write_model(folder / ".hidden" / "partial.gguf")
    write_model(folder / ".hidden.gguf")
    (folder / "same.gguf").symlink_to("x.gguf/inside.gguf")
    for _ in range(2):  # the second time out of the index
        found = discover_models(environ, [folder])
        names = {name for model in found for name in model.names}
        assert names == {"new\nline", os.fsdecode(b"\xff\xfe"), "inside", "same"}
        assert len(found) == 3
        assert {model.problem for model in found} == {None}
    environ["ROCM_MODEL_DIR"] = str(folder)
    assert resolve_model("same", environ).samefile(resolve_model("inside", environ))


def test_given_files_and_folders_that_are_not_there(
    tmp_path: Path, environ: dict[str, str], write_model: WriteModel
) -> None:
    """A file can be given in place of a folder; what the user named and is not there is said."""
    file = write_model(tmp_path / "one.model")
    environ["ROCM_MODEL_DIR"] = str(tmp_path / "none")
    good, bad = discover_models(environ, [file])
    assert (good.path, good.problem) == (file, None)
    assert (bad.path, bad.problem) == (tmp_path / "none", "No such file or directory")
    assert bad.name == str(tmp_path / "none")


def _refuse(patch: pytest.MonkeyPatch, *closed: Path) -> None:
    """Refuse root what the system refuses everybody else."""

    def refusing(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(path: Any, *more: Any, **named: Any) -> Any:
            if path in (*closed, *map(str, closed)):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return call(path, *more, **named)

        return wrapped

    patch.setattr(os, "open", refusing(os.open))
    patch.setattr(os, "scandir", refusing(os.scandir))


def test_no_permission(tmp_path: Path, environ: dict[str, str], write_model: WriteModel) -> None:
    """A closed folder and a closed file are listed; once they are open, they are read."""
    closed, folder = write_model(tmp_path / "m/closed.gguf"), tmp_path / "m/folder"
    write_model(folder / "inside.gguf")
    closed.chmod(0)
    folder.chmod(0)
    with pytest.MonkeyPatch.context() as patch:
        if os.access(closed, os.R_OK):
            _refuse(patch, closed, folder)
        models = _discover(environ, tmp_path / "m")
    folder.chmod(0o755)
    closed.chmod(0o644)
    assert "no permission" in str(models["closed"].problem)
    assert models[str(tmp_path / "m/folder")].problem == "Permission denied"
    models = _discover(environ, tmp_path / "m")
    assert {model.problem for model in models.values()} == {None}


def test_a_store_that_vanishes(
    tmp_path: Path,
    environ: dict[str, str],
    write_model: WriteModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What goes away while it is being looked at was never there."""
    store = tmp_path / "home/.local/share/rocllm/models"
    for folder in ("a", "b", "c"):
        write_model(store / folder / f"{folder}.gguf")
    listed = sources._list_folder

    def list_and_delete(folder: Path) -> tuple[list[Path], list[Path]]:
        found = listed(folder)
        if folder.name == "b":
            shutil.rmtree(store)
        return found

    monkeypatch.setattr(sources, "_list_folder", list_and_delete)
    assert discover_models(environ) == ()


def test_unchanged_files_are_not_read_again(
    tmp_path: Path,
    environ: dict[str, str],
    write_model: WriteModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only size and time of change count, in whichever direction the clock went."""
    path = write_model(tmp_path / "m/one.gguf")
    broken = tmp_path / "m/two.gguf"
    broken.write_bytes(b"no model")
    first = discover_models(environ, [tmp_path / "m"])
    read: list[Path] = []

    def count(path: Path) -> object:
        read.append(path)
        return real(path)

    real = discover.read_facts
    monkeypatch.setattr(discover, "read_facts", count)
    assert discover_models(environ, [tmp_path / "m"]) == first
    assert read == []
    for jump in (-(10**18), 10**18):
        os.utime(path, ns=(0, path.stat().st_mtime_ns + jump))
        assert discover_models(environ, [tmp_path / "m"]) == first
    assert read == [path, path]
    status = path.stat()
    write_model(path, n_layers=2)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert discover_models(environ, [tmp_path / "m"]) != first


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xff",
        b"[]",
        b"[" * 100_000,
        b'{"version": 99, "files": {}}',
        b'{"version": 1, "files": []}',
        b'{"version": 1, "files": {"PATH": 3}}',
        b'{"version": 1, "files": {"PATH": [FINGERPRINT, {"unknown": 1}]}}',
        b'{"version": 1, "files": {"PATH": [FINGERPRINT, {"architecture": [1]}]}}',
        b'{"version": 1, "files": {"PATH": [FINGERPRINT, {"parameter_count": "many"}]}}',
        b'{"version": 1, "files": {"PATH": [FINGERPRINT, {"kind": "dog"}]}}',
    ],
)
def test_a_broken_index(
    content: bytes, tmp_path: Path, environ: dict[str, str], write_model: WriteModel
) -> None:
    """It is no error, and nothing of it is believed."""
    path = write_model(tmp_path / "m/one.gguf")
    expected = discover_models(environ, [tmp_path / "m"])
    index = tmp_path / "home/.cache/rocllm/models.json"
    assert index.is_file()
    status = path.stat()
    fingerprint = f"[[{status.st_size}, {status.st_mtime_ns}]]".encode()
    index.write_bytes(
        content.replace(b"PATH", os.fsencode(path)).replace(b"FINGERPRINT", fingerprint)
    )
    assert discover_models(environ, [tmp_path / "m"]) == expected
    assert json.loads(index.read_bytes())["files"][str(path)]


def test_an_index_that_many_write(
    tmp_path: Path, environ: dict[str, str], write_model: WriteModel
) -> None:
    """Threads and processes at once: it is whole, whoever was last, and nothing is left about."""
    for number in range(5):
        write_model(tmp_path / f"m/{number}.gguf")
    cache = tmp_path / "home/.cache/rocllm"
    for _ in range(10):
        (cache / "models.json").unlink(missing_ok=True)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: discover_models(environ, [tmp_path / "m"]), range(4)))
        assert [len(models) for models in found] == [5] * 4
        assert [path.name for path in cache.iterdir()] == ["models.json"]
        assert len(json.loads((cache / "models.json").read_bytes())["files"]) == 5


def test_an_index_that_cannot_be_written(
    tmp_path: Path, environ: dict[str, str], write_model: WriteModel
) -> None:
    """Without a place for the index everything works, and nothing is left about."""
    write_model(tmp_path / "m/one.gguf")
    cache = tmp_path / "home/.cache"
    cache.parent.mkdir()
    cache.write_text("a file")
    assert len(discover_models(environ, [tmp_path / "m"])) == 1
    cache.unlink()
    (cache / "rocllm/models.json").mkdir(parents=True)
    assert len(discover_models(environ, [tmp_path / "m"])) == 1
    assert [path.name for path in (cache / "rocllm").iterdir()] == ["models.json"]


def test_a_quantization_that_only_the_file_tells(
    tmp_path: Path, environ: dict[str, str], write_model: WriteModel
) -> None:
    """`NAME:QUANTIZATION` also works where the file's name does not say it."""
    environ["ROCM_MODEL_DIR"] = str(tmp_path / "m")
    one = write_model(tmp_path / "m/model-a.gguf", "Q8_0")
    write_model(tmp_path / "m/model-b.gguf", "Q4_0")
    assert resolve_model("model:q8_0", environ) == one
    with pytest.raises(ModelNotFound, match="beginning of several") as caught:
        resolve_model("model", environ)
    assert caught.value.why == "model-a, model-b"
