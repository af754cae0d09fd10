"""Where the environment says that things are."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from rocllm import env


def test_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """`HOME` of the environment that is given; the password database; the root for a stranger."""
    monkeypatch.setenv("HOME", "/home/of-the-process")
    assert env.home({"HOME": "/home/u"}) == Path("/home/u")
    for environ in ({}, {"HOME": ""}):
        assert env.home(environ) == Path(pwd.getpwuid(os.getuid()).pw_dir)

    def nobody(_: int) -> None:
        raise KeyError("getpwuid(): uid not found: 1000680000")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert env.home({}) == Path("/")
    assert env.data_dir({}) == Path("/.local/share/rocllm")
