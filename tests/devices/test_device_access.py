"""What keeps a process from a device file, found without opening it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from rocllm.devices._access import Access, check_access, mode_allows
from rocllm.devices._problems import device_file


def status(mode: int, uid: int, gid: int) -> os.stat_result:
    """A device file of this mode and owner."""
    return os.stat_result((stat.S_IFCHR | mode, 0, 0, 1, uid, gid, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("mode", "owner", "group", "allowed"),
    [
        (0o660, 0, 992, True),
        (0o660, 0, 44, False),
        (0o666, 0, 44, True),
        (0o600, 1000, 44, True),
        (0o640, 0, 992, False),
        (0o066, 1000, 44, False),  # the owner's bits count for the owner, whatever the others say
    ],
)
def test_mode_and_owner(mode: int, owner: int, group: int, allowed: bool) -> None:
    """User 1000, in group 992."""
    assert mode_allows(status(mode, owner, group), 1000, {1000, 992}) is allowed


def test_root_of_a_user_namespace_does_not_own_everything() -> None:
    """In a rootless container the device files belong to nobody."""
    assert mode_allows(status(0o660, 0, 992), 0, {0})
    assert not mode_allows(status(0o660, 65534, 65534), 0, {0})


def test_kernel_is_asked_about_files_of_this_machine(tmp_path: Path) -> None:
    """A file of our own may be used; one that is not there is missing."""
    (tmp_path / "kfd").touch(mode=0o600)

    assert check_access(str(tmp_path / "kfd")) == Access("allowed")
    assert check_access(str(tmp_path / "renderD128")) == Access("missing")


@pytest.mark.parametrize(
    ("access", "what", "remedy"),
    [
        (Access("missing"), "/dev/kfd is missing", "--device /dev/kfd"),
        (Access("masked"), "device cgroup", "DeviceAllow='/dev/kfd rw'"),
        (Access("refused", "render"), "not in group render", "usermod -aG render"),
        (Access("refused", "render", listed=True), "older than", "log out and in again"),
        (Access("refused", "nogroup"), "unknown in this container", "keep-groups"),
        (Access("refused"), "only its owner", "udev rule"),
    ],
)
def test_each_reason_has_its_remedy(access: Access, what: str, remedy: str) -> None:
    """Joining a group helps in one case out of six."""
    problem = device_file("/dev/kfd", access)

    assert problem is not None
    assert what in problem.what
    assert remedy in str(problem.remedy)


def test_nothing_is_wrong_with_a_file_that_may_be_used() -> None:
    """No problem, no words."""
    assert device_file("/dev/kfd", Access("allowed")) is None
