"""Chats written by a model's own template, which may be anybody's: in a process with limits; it runs no model."""

import json
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastcluster_lm.errors import UsageError

# by the clock: a limit of its work is the process's own, and this one ends what waits
MOST_SECONDS = 120.0
Turn = Mapping[str, str]


class ChatTemplate:
    """A tokenizer's chat template; its process starts with the first chat and ends with this object."""

    def __init__(self, tokenizer: Any, name: str) -> None:
        self._name = name
        try:
            self._template = tokenizer.get_chat_template()
        except ValueError as error:
            raise self._refused(f"{error}") from error
        self._words = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
        self._process: subprocess.Popen[str] | None = None

    def render(self, turns: Sequence[Turn]) -> str:
        """Write a chat, up to where the model answers.

        Errors: UsageError for a template that raises, loops, or asks for more than its sandbox or its process may have
        """
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        line = ""
        timer = threading.Timer(MOST_SECONDS, process.kill)
        timer.start()
        try:
            with suppress(BrokenPipeError):
                asked = {"turns": list(turns), "template": self._template, "words": self._words}
                process.stdin.write(json.dumps(asked) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
        finally:
            timer.cancel()
        if not line.endswith("\n"):
            status = process.wait()
            raise self._refused("it does not end" if -status in (signal.SIGPROF, signal.SIGKILL) else f"exit {status}")
        told = json.loads(line)
        if "error" in told:
            raise self._refused(" ".join(told["error"].split()))
        return str(told["text"])

    def _started(self) -> "subprocess.Popen[str]":
        if self._process is None or self._process.poll() is not None:
            # -P: what lies beside the script is not imported
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(Path(__file__).with_name("rendering.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
            )
            weakref.finalize(self, _end, self._process)
        return self._process

    def _refused(self, reason: str) -> UsageError:
        return UsageError(
            f"{self._name}: expected a chat template that writes a question and where its answer begins: {reason}; "
            "--no-chat asks in plain text"
        )


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()
