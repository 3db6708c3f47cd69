"""Installations carry compiled kernels: a wheel all named levels, a checkout its machine's own, neither needs torch."""

import os
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from fastcluster_lm.kernels import native
from fastcluster_lm.kernels.compilation import compilers, levels, library_folder

ROOT = Path(__file__).resolve().parents[2]
COUNT = len(library_folder.sources(native.KERNELS))
SHELL = '#!/bin/bash\nif [ "$1" = --version ]; then echo stand-in 1.0; exit 0; fi\n'


def setuptools_is_new() -> bool:
    try:
        return int(metadata.version("setuptools").split(".")[0]) >= 77
    except metadata.PackageNotFoundError:
        return False


pytestmark = [
    pytest.mark.skipif(not setuptools_is_new(), reason="setuptools 77 or newer is not installed"),
    pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="this is no checkout"),
    pytest.mark.skipif(
        sys.platform != "linux" or platform.machine() != "x86_64" or shutil.which("c++") is None,
        reason="named levels are those of x86-64, and need a compiler",
    ),
]


@pytest.fixture
def checkout(tmp_path) -> Path:
    """Copy what a build reads."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    left_out = shutil.ignore_patterns("__pycache__", "libraries", "results")
    for name in ("fastcluster_lm", "benchmarks"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=left_out)
    return copy


@pytest.fixture
def quick(tmp_path) -> str:
    """Give a compiler that writes a library of nothing, at once."""
    empty = tmp_path / "empty.so"
    subprocess.run(["c++", "-x", "c++", "-shared", "-o", str(empty), "/dev/null"], check=True)
    script = tmp_path / "compiler"
    script.write_text(f'{SHELL}cp {empty} "${{@: -1}}"\n')
    script.chmod(0o755)
    return str(script)


def build(checkout: Path, kind: str, **environment: str) -> tuple[Path, str]:
    """Build as pip would, with setuptools alone at hand; give what was built, and what was said."""
    code = (
        "import os, sys\n"
        "class NoTorch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'numpy'): raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, NoTorch())\n"
        f"from setuptools import build_meta\nname = build_meta.build_{kind}('out')\n"
        "print(); print(name)"
    )
    clean = {key: value for key, value in os.environ.items() if key not in (levels.VARIABLE, "CXX")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=checkout, env={**clean, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return checkout / "out" / done.stdout.splitlines()[-1], done.stdout


def said_without_compiler(code: str, root: Path, **environment: str) -> str:
    """Run Python in a package that was unpacked, on a machine without any compiler and with an empty cache."""
    clean = {key: value for key, value in os.environ.items() if key != levels.VARIABLE}
    clean |= {"PATH": str(root / "nowhere"), "CXX": "", "PYTHONPATH": str(root), native.CACHE: str(root / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env={**clean, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not (root / "cache").exists()
    return done.stdout.strip() + done.stderr


WHERE = (
    "import fastcluster_lm; from fastcluster_lm.kernels import native;"
    "print(fastcluster_lm.__file__, native.status()[0], native.level(), native.outlook()[2])"
)


def test_a_wheel_carries_every_level_for_every_python_and_needs_no_compiler(checkout, quick, tmp_path):
    wheel, said = build(checkout, "wheel", CXX=quick)
    assert wheel.name.endswith("-py3-none-linux_x86_64.whl")
    assert [f"compiling {COUNT} kernels for {level}" in said for level in levels.NAMED] == [True] * 3
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    for level in levels.NAMED:
        own = [Path(name) for name in names if f"kernels/libraries/{level}/" in name]
        assert sorted(path.suffix for path in own) == [".json"] * COUNT + [".so"] * COUNT
    assert not [name for name in names if name.endswith(library_folder.LOCK)]
    found = said_without_compiler(WHERE, tmp_path / "installed")
    assert found.startswith(str(tmp_path / "installed"))
    assert found.endswith(f"True {levels.named_here()[-1]} {COUNT} came with the installation")


def test_a_checkout_carries_its_machines_own_level_or_the_one_named(checkout, quick):
    libraries = checkout / "fastcluster_lm" / "kernels" / "libraries"
    for asked, level in (("", levels.named_here()[-1]), ("x86-64-v2", "x86-64-v2")):
        build(checkout, "editable", CXX=quick, **({levels.VARIABLE: asked} if asked else {}))
        assert [path.name for path in libraries.iterdir()] == [level]
        assert len(list((libraries / level).glob("*.so"))) == COUNT
    # what a checkout holds is not carried into a wheel of another machine
    wheel, _ = build(checkout, "wheel", CXX="/nowhere", PATH="/nowhere")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if "libraries" in name]


def test_a_second_wheel_of_a_checkout_carries_nothing_of_the_first_one(checkout, quick, tmp_path):
    build(checkout, "wheel", CXX=quick)
    source = checkout / "fastcluster_lm" / "kernels" / "point_frames" / "cpu.cpp"
    source.write_text(source.read_text() + "// changed\n")
    wheel, _ = build(checkout, "wheel", CXX=quick)
    with zipfile.ZipFile(wheel) as archive:
        carried = [name for name in archive.namelist() if "libraries" in name and name.endswith(".so")]
    assert len(carried) == 3 * COUNT


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a folder away")
@pytest.mark.parametrize("own", [True, False])
def test_a_folder_of_another_owner_fails_no_installation(tmp_path, quick, own):
    libraries = tmp_path / "package" / "libraries"
    libraries.mkdir(parents=True)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    code = (
        "import sys; from pathlib import Path\n"
        f"sys.path.insert(0, {str(native.KERNELS)!r})\n"
        "from compilation.packaging import build_packaged\n"
        f"print(*build_packaged(Path({str(native.KERNELS)!r}), Path({str(libraries)!r}), own={own}), sep='\\n')"
    )
    command = ["setpriv", "--reuid=12345", "--clear-groups", sys.executable, "-c", code]
    environment = {**os.environ, "CXX": quick, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if "Permission denied" in done.stderr and "Traceback" not in done.stderr and done.returncode:
        pytest.skip("another user cannot run this Python")
    assert done.returncode == 0, done.stderr
    assert "no kernels are compiled for" in done.stdout and "slower torch code runs" in done.stdout


@pytest.mark.parametrize("kind", ["wheel", "editable"])
@pytest.mark.parametrize("environment", [{"CXX": "", "PATH": "/nowhere"}, {"CXX": "/bin/false"}])
def test_an_installation_without_a_working_compiler_says_so_in_a_line_and_goes_on(checkout, kind, environment):
    built, said = build(checkout, kind, **environment)
    if kind == "wheel" and not environment["CXX"]:
        assert built.name.endswith("-py3-none-any.whl")
    else:
        (line,) = [line for line in said.splitlines() if "no kernels are compiled" in line]
        assert "slower torch code runs until there is a compiler" in line


def test_a_source_distribution_holds_all_that_is_compiled_and_makes_a_wheel(checkout, quick, tmp_path):
    archive, _ = build(checkout, "sdist", CXX=quick)
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    kernels = unpacked / "fastcluster_lm" / "kernels"
    for pattern in ("*.h", "*/*.h", "*/*.cpp"):
        held = sorted(path.relative_to(kernels) for path in kernels.glob(pattern))
        assert held == sorted(path.relative_to(native.KERNELS) for path in native.KERNELS.glob(pattern)) and held
    assert not (kernels / "libraries").exists()
    wheel, _ = build(unpacked, "wheel", CXX=quick)
    assert wheel.name.endswith("-py3-none-linux_x86_64.whl")


@pytest.mark.slow
def test_a_real_wheel_computes_without_a_compiler_at_every_level_offered(checkout, tmp_path):
    wheel, _ = build(checkout, "wheel", CXX=compilers.find())
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    code = (
        "import torch; from fastcluster_lm import kmeans, nearest_neighbors, tsne; X = torch.randn(2, 50, 80);"
        "tsne(X, n_iter=5, perplexity=5); kmeans(X, 3, n_init=1); nearest_neighbors(X, X, 5);" + WHERE
    )
    for level in levels.named_here():
        found = said_without_compiler(code, tmp_path / "installed", **{levels.VARIABLE: level})
        assert found.endswith(f"True {level} {COUNT} came with the installation")
