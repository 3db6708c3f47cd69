"""Names the code that runs are made by, by what of its sources can change a result; it reads and runs nothing else."""

import ast
import hashlib
import json
import os
import re
import tomllib
from functools import cache
from pathlib import Path

# rooms that no run's figures go through, and what is made from the sources beside them
LEFT_OUT = ("cli", "views", "benchmarks", "libraries", "__pycache__")

# what the compiler skips, and before it what only looks like it: comment marks and spaces within quotes, and the
# quotes within numbers (1'000)
_CPP = re.compile(
    r"""
    (?P<gap> (?: \s | //(?:\\\n|[^\n])* | /\*.*?\*/ )+ )
    | (?:u8|[uUL])? R"(?P<mark>[^()\\\s]{0,16})\(.*?\)(?P=mark)"
    | "(?:\\.|[^"\\\n])*"
    | \d(?:'?\w)*
    | [A-Za-z_]\w*
    | '(?:\\.|[^'\\\n])+'
    """,
    re.DOTALL | re.VERBOSE,
)
_CPP_COMMENT = re.compile(r"//(?:\\\n|[^\n])*|/\*.*?\*/", re.DOTALL)


@cache
def code_digest() -> str:
    """Name the code that runs are made by: a digest of all that can change what a run finds.

    Notes:  of each source file and preset of the package, except what only shows or times things, without comments,
            docstrings and layout
    """
    return digest_of(Path(__file__).parents[1])


def digest_of(package: Path) -> str:
    """Name the code in a folder as code_digest does."""
    digest = hashlib.sha256()
    for folder, inner, files in os.walk(package):
        inner[:] = sorted(name for name in inner if name not in LEFT_OUT)
        for path in sorted(Path(folder) / name for name in files):
            if path.suffix in (".py", ".toml", ".h", ".cpp", ".json"):
                digest.update(f"{path.relative_to(package).as_posix()}\n".encode() + _meaning(path) + b"\n")
    return digest.hexdigest()[:12]


def _meaning(path: Path) -> bytes:
    """Give what of a source file can change a result."""
    if path.suffix == ".py":
        return repr(_syntax(ast.parse(path.read_bytes(), path))).encode()
    if path.suffix == ".toml":
        return json.dumps(tomllib.loads(path.read_text()), default=str).encode()
    if path.suffix in (".h", ".cpp"):
        return _CPP.sub(_shortened, path.read_text()).strip().encode()
    return path.read_bytes()


def _syntax(node: object) -> object:
    """Turn a syntax tree into nested lists, without strings that stand alone, docstrings above all.

    Notes:  fields that are empty are left out, since each version of Python adds some
    """
    if isinstance(node, list):
        return [_syntax(part) for part in node if not _is_docstring(part)]
    if not isinstance(node, ast.AST):
        return node
    return [
        type(node).__name__,
        *([name, _syntax(value)] for name, value in ast.iter_fields(node) if value is not None and value != []),
    ]


def _is_docstring(node: object) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _shortened(found: re.Match[str]) -> str:
    """Put one space, or one end of a line, in place of spaces and comments, and leave all else as it is."""
    gap = found["gap"]
    if gap is None:
        return found[0]
    return "\n" if "\n" in _CPP_COMMENT.sub("", gap) else " "
