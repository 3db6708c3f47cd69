"""The system calls of this process on the files below a folder: counted, and at one of them a fault; it judges nothing.

For children only: what is wrapped stays wrapped until the process ends.
"""

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

# by what tells which file they touch
BY_PATH = ("open", "replace", "rename", "mkdir", "unlink", "remove", "rmdir", "link", "listdir", "scandir", "stat")
BY_DESCRIPTOR = ("write", "fsync", "fdatasync", "ftruncate", "read", "pread")
# calls that leave the disk as it is
READING = ("open to read", "read", "pread", "listdir", "scandir", "stat")
# calls that a full disk does not refuse
WITHOUT_SPACE = ("unlink", "remove", "rmdir", "ftruncate")
MOMENTS = ("before", "during", "after")
# what a process prints that ends itself at a call
STRUCK = "struck at the call"

Act = Callable[[str, str, Callable[[], Any], tuple[Any, ...]], Any]


class Calls:
    """Lets every call below the folder go through `act`, as (name, path, the real call, its arguments)."""

    def __init__(self, folder: Path, act: Act) -> None:
        self._root, self._act, self._inside = str(folder.resolve()), act, False
        for name in (*BY_PATH, *BY_DESCRIPTOR):
            setattr(os, name, self._wrap(name, getattr(os, name)))
        self._open = io.open
        io.open = builtins.open = self._open_file  # type: ignore[assignment]

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            path = None if self._inside else self._path(args[0] if args else ".", kwargs.get("dir_fd"))
            if path is None:
                return real(*args, **kwargs)
            said = name
            if name == "open":
                flags = args[1] if len(args) > 1 else kwargs["flags"]
                said = "open to write" if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR) else "open to read"
            return self._pass(said, path, lambda: real(*args, **kwargs), args)

        return call

    def _open_file(self, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        path = None if self._inside or isinstance(file, int) else self._path(file, None)
        if path is None or kwargs.get("opener"):
            return self._open(file, mode, *args, **kwargs)
        reading = not set(mode) & set("wax+")
        opened = self._pass(
            "open to read" if reading else "open to write", path, lambda: self._open(file, mode, *args, **kwargs), ()
        )
        if not reading:
            return opened
        opened.close()
        # its reads are calls too
        raw = io.BufferedReader(_Watched(path, self._pass))
        return raw if "b" in mode else io.TextIOWrapper(raw, kwargs.get("encoding"), newline=kwargs.get("newline"))

    def _pass(self, name: str, path: str, real: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        self._inside = True
        try:
            return self._act(name, path, real, args)
        finally:
            self._inside = False

    def _path(self, named: Any, folder: int | None) -> str | None:
        """Give the path below the folder that a call names, None for any other."""
        self._inside = True
        try:
            if isinstance(named, int):
                found = os.readlink(f"/proc/self/fd/{named}")
            else:
                found = os.fsdecode(os.fspath(named))
                if folder is not None:
                    found = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), found)
        except OSError:
            return None
        finally:
            self._inside = False
        found = os.path.abspath(found)
        return found if found == self._root or found.startswith(self._root + os.sep) else None


class _Watched(io.FileIO):
    """A file whose reads go through the same gate."""

    def __init__(self, path: str, passing: Callable[..., Any]) -> None:
        super().__init__(path)
        self._path, self._passing = path, passing

    def readall(self) -> bytes:
        return self._passing("read", self._path, super().readall, ())

    def readinto(self, buffer: Any) -> int:
        return self._passing("read", self._path, lambda: super(_Watched, self).readinto(buffer), ())


def counted(folder: Path, action: Callable[[], Any]) -> list[tuple[str, str]]:
    """Do it and list the calls, as (name, path below the folder)."""
    found: list[tuple[str, str]] = []

    def note(name: str, path: str, real: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        found.append((name, os.path.relpath(path, folder)))
        return real()

    Calls(folder, note)
    action()
    return found


def kill_at(folder: Path, at: int, moment: str) -> None:
    """End this process by SIGKILL at the call of this number among those that change the disk, 0 the first.

    The last thing that it prints is STRUCK, which tells it from a process that was killed from outside
    """
    count = -1

    def act(name: str, path: str, real: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        nonlocal count
        count += name not in READING
        if count != at or name in READING:
            return real()
        if moment == "during" and name == "write":
            os.write(args[0], bytes(args[1])[: len(args[1]) // 2])
        elif moment != "before":
            real()
        os.write(1, f"{STRUCK} {name}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)

    Calls(folder, act)


def fail_at(folder: Path, at: int, code: int, *, for_good: bool = False) -> None:
    """Let the call of this number fail once with this error number, or with it all that need space from there on."""
    count = -1

    def act(name: str, path: str, real: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        nonlocal count
        count += 1
        later = for_good and count > at and name not in READING and name not in WITHOUT_SPACE
        if count != at and not later:
            return real()
        if name == "write" and code == errno.ENOSPC and not later:
            # a disk takes what it has room for first
            os.write(args[0], bytes(args[1])[: len(args[1]) // 2])
        raise OSError(code, os.strerror(code), path)

    Calls(folder, act)
