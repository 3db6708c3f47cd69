"""Law 6: every command and option is documented, and the example in each help text runs."""

import re
import shlex

import click
import pytest
import tomli_w
from click.testing import CliRunner

from fastcluster_lm.cli import main
from fastcluster_lm.config import config_to_dict
from tests.laws.conftest import run_to_end

COMMANDS = [(), *((name,) for name in sorted(main.commands))]


def command_of(path: tuple[str, ...]) -> click.Command:
    return main.commands[path[0]] if path else main


def example_of(path: tuple[str, ...]) -> list[str]:
    shown = CliRunner().invoke(main, [*path, "--help"]).output
    found = re.search(r"Example:\n((?:\s+fclm .*\n)+)", shown)
    assert found, f"fclm {' '.join(path)} --help shows no example"
    return [shlex.split(line.strip())[1:] for line in found.group(1).splitlines()]


def test_there_are_the_commands_that_others_rely_on():
    assert {"train", "scores", "runs", "doctor", "data"} <= set(main.commands)


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: " ".join(path) or "fclm")
def test_every_command_and_option_is_documented(path):
    command = command_of(path)
    assert command.help and len(command.help.split()) > 4
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help and option.help.endswith("."), f"{option.opts} of fclm {' '.join(path)}"
        else:
            assert option.name.upper() in command.help or option.name.upper() in " ".join(command.help.split())


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: " ".join(path) or "fclm")
def test_the_example_in_the_help_runs(path, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_to_end(small, tmp_path / "RUN")
    for arguments in example_of(path):
        if arguments[0] == "train":  # a smaller run of the same words
            (tmp_path / "small.toml").write_bytes(tomli_w.dumps(config_to_dict(small)).encode())
            arguments = [*arguments, "-c", "small.toml"]
        done = CliRunner().invoke(main, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert done.output.strip()
