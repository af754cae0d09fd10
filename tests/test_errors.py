"""The tree of errors: as drawn, with messages in three parts, and fit to travel."""

from __future__ import annotations

import copy
import pickle
import re

import pytest

from rocllm import errors
from rocllm.errors import RocllmError

_COUSINS = {
    "OptionsError": ValueError,
    "DeviceAccessDenied": PermissionError,
    "ModelNotFound": FileNotFoundError,
    "InvalidGGUF": ValueError,
    "BinaryNotFound": FileNotFoundError,
    "StartTimeout": TimeoutError,
    "OutOfMemory": MemoryError,
    "ConnectionLost": ConnectionError,
    "RequestTimeout": TimeoutError,
    "BadRequest": ValueError,
    "ContextOverflow": ValueError,
    "StreamClosed": RuntimeError,
}
_ALL = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, RocllmError)
]


def _drawn() -> set[tuple[str, str, str | None]]:
    """(class, its parent, its cousin or None) for each line of the tree in the docstring."""
    assert errors.__doc__ is not None
    line = re.compile(r"^    ((?:│ )*)[├└] (\w+)(?: \((\w+)\))?", re.MULTILINE)
    path = ["RocllmError"]
    rows = set()
    for bars, name, cousin in line.findall(errors.__doc__):
        path[len(bars) // 2 + 1 :] = [name]
        rows.add((name, path[-2], cousin or None))
    return rows


def _real() -> set[tuple[str, str, str | None]]:
    rows = set()
    for cls in _ALL:
        if cls is RocllmError:
            continue
        parent, *cousins = cls.__bases__
        assert len(cousins) <= 1
        rows.add((cls.__name__, parent.__name__, cousins[0].__name__ if cousins else None))
    return rows


def test_the_drawing_is_the_tree() -> None:
    """The docstring shows each class, under its parent, with its cousin."""
    assert _drawn() == _real()


@pytest.mark.parametrize("cls", _ALL)
def test_cousins(cls: type[RocllmError]) -> None:
    """What the standard library has a class for is caught by that class."""
    assert issubclass(cls, RocllmError)
    assert issubclass(cls, _COUSINS.get(cls.__name__, Exception))


@pytest.mark.parametrize("cls", _ALL)
def test_message_has_three_parts(cls: type[RocllmError]) -> None:
    """What, why and remedy are lines of the message, in that order, and attributes."""
    error = cls("it failed", why="because", remedy="do this")
    assert str(error) == "it failed\nbecause\ndo this"
    assert (error.what, error.why, error.remedy) == ("it failed", "because", "do this")
    assert str(cls("it failed", remedy="do this")) == "it failed\ndo this"
    assert str(cls("it failed")) == "it failed"


@pytest.mark.parametrize("cls", _ALL)
def test_errors_can_be_pickled_and_copied(cls: type[RocllmError]) -> None:
    """An error crosses process boundaries whole, as `concurrent.futures` needs it."""
    error = cls("it failed", why="because", remedy="do this")
    vars(error)["extra"] = 7
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is cls
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)


def test_what_an_error_carries_survives_pickling() -> None:
    """Fields beyond the message are kept."""
    failed = errors.ServerCrashed("gone", argv=("a", "b"), exit_status=-9, output=("x",))
    failed.text = "so far"
    twin = pickle.loads(pickle.dumps(failed))
    assert (twin.argv, twin.exit_status, twin.output, twin.text) == (
        ("a", "b"),
        -9,
        ("x",),
        "so far",
    )
    overflow = errors.ContextOverflow("long", status=400, n_prompt_tokens=9, n_ctx=8)
    twin = pickle.loads(pickle.dumps(overflow))
    assert (twin.status, twin.n_prompt_tokens, twin.n_ctx, twin.text) == (400, 9, 8, "")
    assert pickle.loads(pickle.dumps(errors.InvalidGGUF("bad", offset=24))).offset == 24


def test_retryable_is_decided_by_the_class() -> None:
    """These and no others may succeed unchanged a little later."""
    retryable = {cls.__name__ for cls in _ALL if cls.retryable}
    assert retryable == {
        "AddressInUse",
        "ConnectionLost",
        "RequestTimeout",
        "ServerBusy",
        "ServerCrashed",
    }


def test_the_warning_can_be_filtered() -> None:
    """rocllm's warnings have a class of their own, so that a filter can name them."""
    assert issubclass(errors.RocllmWarning, UserWarning)
