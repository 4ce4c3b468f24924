"""As whom PostgreSQL runs: it refuses to be root, and an ordinary user cannot enter a folder of mode 0700 that root owns.

As a plain user: as ourselves. As root, the first of these that works (who owns the data folder tells later which one it was):

setpriv     another user (nobody), with the one capability that lets it pass closed folders, CAP_DAC_OVERRIDE
unshare     a user namespace in which root itself appears as nobody; the files stay root's
"""

from __future__ import annotations

import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path

from relay.store.translate import StoreUnusable
from relay.store.wheel import minimal_environment

NOBODY = 65534


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAs:
    """How a PostgreSQL program is started: what stands before its command line, and who must own its files (None: we do)."""

    name: str
    prefix: tuple[str, ...]
    owner: tuple[int, int] | None

    def hand_over(self, path: Path) -> None:
        """Make `path` belong to the user that the server runs as. Raises OSError."""
        if self.owner is not None:
            os.chown(path, *self.owner)

    def refusal(self, program: Path) -> str | None:
        """Return None when `program` can be run this way here, else what went wrong."""
        try:
            done = subprocess.run(
                [*self.prefix, str(program), "-V"],
                env=minimal_environment(), cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            )  # fmt: skip
        except OSError as exc:
            return str(exc)
        return (
            None
            if done.returncode == 0
            else (done.stderr or done.stdout).strip()[:300] or f"exit code {done.returncode}"
        )


OURSELVES = RunAs(name="ourselves", prefix=(), owner=None)


def candidates() -> list[RunAs]:
    """Return the ways to try for a new cluster, best first."""
    if os.geteuid() != 0:
        return [OURSELVES]
    uid, gid = _nobody()
    return [_setpriv(uid, gid), _unshare(uid)]


def run_as_for(owner: int, folder: Path) -> RunAs:
    """Return how to run the server of a cluster that the user `owner` has. Raises StoreUnusable when we cannot be that user."""
    if owner == os.geteuid() and owner != 0:
        return OURSELVES
    if os.geteuid() != 0:
        raise StoreUnusable(
            f"database.path {folder}: belongs to {_name_of(owner)}, and we are {_name_of(os.geteuid())}: "
            "run as that user, or name another folder"
        )
    if owner == 0:
        return _unshare(_nobody()[0])
    try:
        gid = pwd.getpwuid(owner).pw_gid
    except KeyError:
        gid = owner
    return _setpriv(owner, gid)


def _setpriv(uid: int, gid: int) -> RunAs:
    options = ("--reuid", str(uid), "--regid", str(gid), "--clear-groups")
    capabilities = ("--inh-caps", "+dac_override", "--ambient-caps", "+dac_override")
    return RunAs(name="setpriv", prefix=("setpriv", *options, *capabilities, "--"), owner=(uid, gid))


def _unshare(uid: int) -> RunAs:
    return RunAs(name="unshare", prefix=("unshare", "--user", f"--map-user={uid}", "--"), owner=None)


def _nobody() -> tuple[int, int]:
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return NOBODY, NOBODY
    return entry.pw_uid, entry.pw_gid


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
