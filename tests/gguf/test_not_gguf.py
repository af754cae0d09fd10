"""What is not a GGUF file is told by what it is, and never waited for."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import socket
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from rocllm.errors import InvalidGGUF, ModelFileError, ModelNotFound
from rocllm.gguf import read_gguf


def zip_archive() -> bytes:
    """What `torch.save` writes today."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", b"x" * 100)
    return buffer.getvalue()


LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53\nsize 98362432\n"
)
SAFETENSORS = b'{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
OTHERS = {
    "empty": (b"", "it is empty"),
    "lfs": (LFS_POINTER, "Git LFS pointer.*\nrun: git lfs pull"),
    "html": (b"\n<!DOCTYPE HTML>\n<html><body>Sign in</body></html>", "a web page"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML document"),
    "json": (b'{"error":"Repository not found"}', "it is JSON"),
    "zip": (zip_archive(), "zip archive.*\n.*convert_hf_to_gguf.py"),
    "pickle": (pickle.dumps({"a": 1}), "Python pickle"),
    "safetensors": (struct.pack("<Q", len(SAFETENSORS)) + SAFETENSORS + bytes(4), "safetensors"),
    "ggml": (b"tjgg" + bytes(60), "GGML file from before GGUF"),
    "gzip": (gzip.compress(b"x"), "compressed file"),
    "text": ("Grüße aus Köln, dies ist ein Text. ".encode() * 30, "a text that begins with 'Grüße"),
    "escape": (b"\x1b[2Jboo", r"it begins with b'\\x1b\[2J'"),
    "zeros": (bytes(5000), "download did not finish"),
    "noise": (bytes(range(128, 256)) * 8, "of a format that rocllm does not know"),
    "short": (b"GG", "a text that begins with 'GG'"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_are_recognised(tmp_path: Path, name: str) -> None:
    """The error says what the file is, in its second line, and what to do, in its third."""
    contents, why = OTHERS[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(contents)
    with pytest.raises(InvalidGGUF, match=why) as caught:
        read_gguf(path)
    assert caught.value.offset == 0
    assert len(str(caught.value).splitlines()) == 3


def test_magic_alone(tmp_path: Path) -> None:
    """A file that was cut within its header is broken, not of another format."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF\3\0\0\0")
    with pytest.raises(InvalidGGUF, match="broken at byte 8, in the header"):
        read_gguf(path)


def test_a_directory(tmp_path: Path) -> None:
    """Also one that is called like a model."""
    path = tmp_path / "model.gguf"
    path.mkdir()
    with pytest.raises(InvalidGGUF, match="is a directory"):
        read_gguf(path)


@pytest.mark.parametrize("name", ["missing.gguf", "file/missing.gguf", "a\0b"])
def test_no_such_file(tmp_path: Path, name: str) -> None:
    """It is our error, and Python's FileNotFoundError as well."""
    (tmp_path / "file").touch()
    with pytest.raises(ModelNotFound, match="no model file") as caught:
        read_gguf(tmp_path / name)
    assert isinstance(caught.value, FileNotFoundError)


def test_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    """As in a Hugging Face cache whose blobs were deleted."""
    path = tmp_path / "model.gguf"
    path.symlink_to("../blobs/0123")
    with pytest.raises(ModelNotFound, match=r"symbolic link to '../blobs/0123'"):
        read_gguf(path)


def test_a_circle_of_links(tmp_path: Path) -> None:
    """What the system says is passed on."""
    path = tmp_path / "model.gguf"
    path.symlink_to(path)
    with pytest.raises(ModelFileError, match="Too many levels of symbolic links"):
        read_gguf(path)


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    """No operating system error gets out as it is."""
    with pytest.raises(ModelFileError, match="File name too long"):
        read_gguf(tmp_path / ("x" * 300))


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says whose permission is missing; root, who has all, is refused by a stand-in."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    path.chmod(0)
    if os.geteuid() == 0:

        def refuse(*_arguments: object) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ModelFileError, match="may not be read") as caught:
        read_gguf(path)
    assert not isinstance(caught.value, (ModelNotFound, InvalidGGUF))


def test_pipes_sockets_and_devices_are_not_opened(tmp_path: Path) -> None:
    """Opening a pipe that nobody writes to would wait for ever."""
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for path, what in (
            (pipe, "a pipe"),
            (tmp_path / "socket", "a socket"),
            (Path("/dev/zero"), "a device"),
        ):
            with pytest.raises(InvalidGGUF, match=f"is {what}, not a GGUF file"):
                read_gguf(path)


def test_a_pipe_that_takes_the_place_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking and opening the file may change; that must not block either."""
    path = tmp_path / "model.gguf"
    os.mkfifo(path)
    regular = os.stat(__file__)
    assert stat.S_ISREG(regular.st_mode)
    monkeypatch.setattr(os, "stat", lambda _path: regular)
    with pytest.raises(InvalidGGUF, match="is a pipe"):
        read_gguf(path)


def test_nothing_stays_open(tmp_path: Path) -> None:
    """The descriptor is closed whatever happens."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with pytest.raises(InvalidGGUF):
            read_gguf(path)
    assert len(os.listdir("/proc/self/fd")) == len(before)
