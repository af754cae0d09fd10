"""Device files and the user who would open them."""

from __future__ import annotations

import grp
import os
import pwd

from rocllm.devices._access import Access, AccessCheck, check_access, mode_allows
from rocllm.devices._sysfs import Tree, decimal
from rocllm.doctor.types import DeviceFile, User


def current_user() -> User:
    """Who runs this process."""
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    return User(name, uid, frozenset({os.getgid(), *os.getgroups()}))


def access_check(tree: Tree, here: bool, user: User | None) -> AccessCheck | None:
    """How to judge device files; `None`: they are placeholders, and judged by presence only.

    user: `None`: who runs this process.
    """
    if user is None:
        return check_access if here else None
    judged = user

    def check(path: str) -> Access:
        try:
            status = os.stat(tree.path(path.lstrip("/")))
        except OSError:
            return Access("missing")
        allowed = mode_allows(status, judged.uid, set(judged.groups))
        return Access("allowed" if allowed else "refused")

    return check


def read_device_file(
    tree: Tree, path: str, access: AccessCheck | None, user: User | None, *, here: bool
) -> DeviceFile:
    """The file at `path` of the machine, and what `access` says of it."""
    try:
        status = os.stat(tree.path(path.lstrip("/")))
    except OSError:
        return DeviceFile(path=path, state="missing")
    group, members = _group_here(status.st_gid) if here else _group_of(tree, status.st_gid)
    return DeviceFile(
        path=path,
        state=None if access is None else access(path).state,
        mode=status.st_mode & 0o777,
        owner=status.st_uid,
        gid=status.st_gid,
        group=group,
        listed=user is not None and user.name in members,
    )


def _group_here(gid: int) -> tuple[str | None, list[str]]:
    try:
        group = grp.getgrgid(gid)
    except KeyError:
        return None, []
    return group.gr_name, group.gr_mem


def _group_of(tree: Tree, gid: int) -> tuple[str | None, list[str]]:
    """The same from a tree's own group(5) file."""
    for line in (tree.text("etc/group") or "").split("\n"):
        fields = line.split(":")
        if len(fields) == 4 and decimal(fields[2]) == gid:
            return fields[0], [member for member in fields[3].split(",") if member]
    return None, []
