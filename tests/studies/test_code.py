"""What names the code changes with all that can change a result, and with nothing else."""

from pathlib import Path

import pytest

import fastcluster_lm
from fastcluster_lm.studies.code import code_digest, digest_of

PYTHON = '''"""What it does."""

RATE = 0.5  # measured

class Probe:
    """One probe."""

    def score(self, x):
        """Score it."""
        # twice
        return x * 2 + len("# no comment")
'''
CPP = """// what it does
#include <vector>

/* several
   lines */
constexpr int MOST = 1'000;  // '
int halve(int n) {
    const char* where = "https://a  b /* c */"; // a "string"
    const char mark = '"'; /* ' */
    const char* raw = R"(one " // two)";
    return n /* not m */ / 2 ? where[0] + raw[0] : mark;
}
"""
TOML = "# why\n[model]\nd_model = 32  # width\n"


def digest(tmp_path: Path, name: str, text: str) -> str:
    (tmp_path / name).write_text(text)
    return digest_of(tmp_path)


@pytest.mark.parametrize(
    ("name", "source", "old", "new"),
    [
        ("a.py", PYTHON, '"""What it does."""', '"""What it does, in other words."""'),
        ("a.py", PYTHON, '    """One probe."""\n', ""),
        ("a.py", PYTHON, '"""Score it."""', '"""Score one."""'),
        ("a.py", PYTHON, "        # twice\n", "\n        # two times\n\n"),
        ("a.py", PYTHON, "0.5  # measured", "0.5"),
        ("a.py", PYTHON, "self, x", "self,\n        x,\n    "),
        ("a.cpp", CPP, "// what it does\n", "// what else it does, in two \\\nlines\n\n\n"),
        ("a.cpp", CPP, "/* several\n   lines */\n", ""),
        ("a.cpp", CPP, ";  // '\n", ";\n"),
        ("a.h", CPP, '// a "string"', '// a "string'),
        ("a.h", CPP, "/* ' */", "// \" '"),
        ("a.h", CPP, "/* not m */", "/* it // is n */"),
        ("a.h", CPP, "    return", "\n  // the end\n\treturn"),
        ("a.toml", TOML, "  # width", ""),
        ("a.toml", TOML, "# why\n", "\n# why not\n\n"),
    ],
)
def test_words_and_layout_leave_it(tmp_path, name, source, old, new):
    assert source.count(old) == 1
    assert digest(tmp_path, name, source) == digest(tmp_path, name, source.replace(old, new))


@pytest.mark.parametrize(
    ("name", "source", "old", "new"),
    [
        ("a.py", PYTHON, "0.5", "0.25"),
        ("a.py", PYTHON, "x * 2", "x * 2.0"),
        ("a.py", PYTHON, '"# no comment"', '"# a comment"'),
        ("a.py", PYTHON, '+ len("# no comment")', ""),
        ("a.py", PYTHON, "class Probe", "class Probes"),
        ("a.cpp", CPP, "1'000", "1'001"),
        ("a.cpp", CPP, "https://a", "https://b"),
        ("a.cpp", CPP, "a  b", "a b"),
        ("a.cpp", CPP, "/* c */", ""),
        ("a.cpp", CPP, "// two", "// three"),
        ("a.cpp", CPP, "'\"'", "'#'"),
        ("a.h", CPP, "/ 2", "/ 3"),
        ("a.h", CPP, "#include <vector>\n\n/* several\n   lines */\n", "#include <vector> /* several\n   lines */ "),
        ("a.toml", TOML, "32", "64"),
        ("a.json", '{"a": 1}', "1", "2"),
    ],
)
def test_what_can_change_a_result_changes_it(tmp_path, name, source, old, new):
    assert source.count(old) == 1
    assert digest(tmp_path, name, source) != digest(tmp_path, name, source.replace(old, new))


def test_a_moved_file_changes_it_and_what_is_built_or_only_shows_does_not(tmp_path):
    before = digest(tmp_path, "a.py", PYTHON)
    for folder in ("views", "libraries", "cli", "__pycache__"):
        (tmp_path / "kernels" / folder).mkdir(parents=True)
        (tmp_path / "kernels" / folder / "b.json").write_text("{}")
    (tmp_path / "notes.md").write_text("a")
    assert digest_of(tmp_path) == before
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert digest_of(tmp_path) != before


def test_the_package_has_one():
    assert code_digest() == digest_of(Path(fastcluster_lm.__file__).parent)
