"""What a power cut may take from the files below a folder: data not forced to disk, and names of folders that were not.

A model, for children only. File data that no fsync followed is cut off; renamings, new and removed names that no fsync
of their folder followed are undone, the latest first, as many as chance has it, since a journal keeps their order.
"""

import os
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.campaign.calls import READING, Calls

# a file of the vault
SURE = "sure"


@dataclass
class Entry:
    """A change of a name that a power cut may undo: what, where, from where, and what was there before."""

    kind: str
    path: str
    source: str = ""
    kept: str = ""

    def moved(self, old: str, new: str) -> None:
        """Follow a folder that got another name."""
        for field in ("path", "source"):
            value = getattr(self, field)
            if value.startswith(old + os.sep):
                setattr(self, field, new + value[len(old) :])


class Outage:
    """Follows what is forced to disk and what is not; at the call of a number, 0 the first, the power goes."""

    def __init__(self, folder: Path, vault: Path, at: int, draw: random.Random) -> None:
        self._folder, self._vault, self._at, self._draw = folder, vault, at, draw
        self._count = -1
        # sizes that files surely have, by inode, and names that may be undone, in their order
        self._dirty: dict[int, int] = {}
        self._entries: list[Entry] = []
        vault.mkdir()
        Calls(folder, self._act)

    def _act(self, name: str, path: str, real: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        if name in READING:
            return real()
        self._count += 1
        if self._count == self._at:
            self._cut()
        before = getattr(self, f"_{name.replace(' ', '_')}", None)
        return real() if before is None else before(path, real, args)

    def _open_to_write(self, path: str, real: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        new = not os.path.lexists(path)
        opened = real()
        # a file object was opened to be written anew
        emptied = not args or bool(args[1] & os.O_TRUNC)
        if new:
            self._entries.append(Entry("new", path))
        if new or emptied:
            self._dirty[os.stat(path).st_ino] = 0
        return opened

    def _write(self, path: str, real: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        found = os.fstat(args[0])
        self._dirty.setdefault(found.st_ino, found.st_size)
        return real()

    def _fsync(self, path: str, real: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        done = real()
        self._dirty.pop(os.fstat(args[0]).st_ino, None)
        self._entries = [entry for entry in self._entries if os.path.dirname(entry.path) != path]
        return done

    def _mkdir(self, path: str, real: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        done = real()
        self._entries.append(Entry("new", path))
        return done

    def _unlink(self, path: str, real: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        kept = self._keep(path)
        done = real()
        self._entries.append(Entry("gone", path, kept=kept))
        return done

    def _rmdir(self, path: str, real: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        done = real()
        self._entries.append(Entry("gone folder", path))
        return done

    def _replace(self, path: str, real: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        target = os.path.abspath(os.fspath(args[1]))
        kept = self._keep(target) if os.path.isfile(target) else ""
        done = real()
        for entry in self._entries:
            entry.moved(path, target)
        self._entries.append(Entry("moved", target, source=path, kept=kept))
        return done

    _rename, _remove = _replace, _unlink

    def _keep(self, path: str) -> str:
        kept = str(self._vault / str(len(os.listdir(self._vault))))
        os.link(path, kept)
        return kept

    def _cut(self) -> None:
        """Take what a cut may take, and end this process; note the checkpoints that must stay: all but the newest."""
        kept = sorted(path.relative_to(self._folder).as_posix() for path in self._folder.glob("*/checkpoints/step-*"))
        (self._vault / SURE).write_text("\n".join(kept[:-1]))
        for _ in range(self._draw.randint(0, len(self._entries))):
            self._undo(self._entries.pop())
        for file in self._folder.rglob("*"):
            found = file.lstat()
            if file.is_file() and found.st_ino in self._dirty:
                # some of what is not sure may have come to the disk
                sure = min(self._dirty[found.st_ino], found.st_size)
                os.truncate(file, self._draw.choice((sure, self._draw.randint(sure, found.st_size))))
        os.kill(os.getpid(), signal.SIGKILL)

    def _undo(self, entry: Entry) -> None:
        if entry.kind == "new":
            shutil.rmtree(entry.path) if os.path.isdir(entry.path) else os.unlink(entry.path)
        elif entry.kind == "gone":
            os.link(entry.kept, entry.path)
        elif entry.kind == "gone folder":
            os.mkdir(entry.path)
        else:
            os.rename(entry.path, entry.source)
            if entry.kept:
                os.link(entry.kept, entry.path)
            for earlier in self._entries:
                earlier.moved(entry.path, entry.source)
