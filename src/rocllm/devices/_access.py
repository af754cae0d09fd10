"""May this process use a device file? Nothing is opened: opening `/dev/kfd` has side effects."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from rocllm.devices._sysfs import Tree

# The kernel shows this owner for users that the user namespace does not know
# (/proc/sys/kernel/overflowuid).
_NOBODY = 65534
_GROUP = stat.S_IRGRP | stat.S_IWGRP


@dataclass(frozen=True, slots=True)
class Access:
    """missing: no such file. refused: its mode and owner keep this user out. masked: they would let
    the user in, so the device cgroup of a container keeps the process out.

    group: the group that may use it; `None`: only the owner may. listed: the user is a member, but
    this session is older.
    """

    state: Literal["allowed", "missing", "refused", "masked"]
    group: str | None = None
    listed: bool = False


# From a path such as `/dev/kfd` to what this process may do with it.
AccessCheck: TypeAlias = Callable[[str], Access]


def check_access(path: str) -> Access:
    """Ask this machine's kernel."""
    if os.access(path, os.R_OK | os.W_OK):
        return Access("allowed")
    try:
        status = os.stat(path)
    except OSError:
        return Access("missing")
    if mode_allows(status, os.getuid(), {os.getgid(), *os.getgroups()}):
        return Access("masked")
    return _refused(status)


def presence_check(tree: Tree) -> AccessCheck:
    """The check for another machine's tree, whose device files are placeholders.

    Only presence is judged, and only when the tree has render nodes at all.
    """
    judged = bool(tree.numbered("dev/dri", "renderD"))

    def check(path: str) -> Access:
        present = not judged or tree.exists(path.lstrip("/"))
        return Access("allowed" if present else "missing")

    return check


def mode_allows(status: os.stat_result, uid: int, groups: set[int]) -> bool:
    """Mode and owner let the user read and write."""
    if uid == 0:
        return status.st_uid != _NOBODY
    if uid == status.st_uid:
        wanted = stat.S_IRUSR | stat.S_IWUSR
    elif status.st_gid in groups:
        wanted = _GROUP
    else:
        wanted = stat.S_IROTH | stat.S_IWOTH
    return status.st_mode & wanted == wanted


def _refused(status: os.stat_result) -> Access:
    if status.st_gid == 0 or status.st_mode & _GROUP != _GROUP:
        return Access("refused")
    try:
        group = grp.getgrgid(status.st_gid)
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return Access("refused", str(status.st_gid))
    return Access("refused", group.gr_name, listed=user in group.gr_mem)
