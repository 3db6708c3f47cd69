"""Compile the CPU kernels as a part of an installation, where there is a compiler; all else is in pyproject.toml."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
KERNELS = ROOT / "fastcluster_lm" / "kernels"


def load_compilation() -> ModuleType:
    """Load the folder that compiles kernels by its path, since importing the package needs torch."""
    folder = KERNELS / "compilation"
    spec = importlib.util.spec_from_file_location(
        "fclm_compilation", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    package = sys.modules["fclm_compilation"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    return importlib.import_module("fclm_compilation.packaging")


class BuildKernels(Command):
    """Compile all named levels into a wheel, this machine's own into a checkout; what cannot be compiled is said."""

    description = "compile the CPU kernels"
    user_options: list[tuple[str, str | None, str]] = []

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        # set by setuptools for an editable installation
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self) -> None:
        into = KERNELS if self.editable_mode else Path(str(self.build_lib)) / "fastcluster_lm" / "kernels"
        packaging = load_compilation()
        asked = os.environ.get("FCLM_MARCH", "")
        for line in packaging.build_packaged(KERNELS, into / "libraries", own=self.editable_mode, asked=asked):
            print(f"fastcluster_lm: {line}", flush=True)

    def get_source_files(self) -> list[str]:
        """List nothing: sources are package data."""
        return []

    def get_outputs(self) -> list[str]:
        """List what was built."""
        return [str(path) for path in Path(str(self.build_lib)).glob("fastcluster_lm/kernels/libraries/*/*")]

    def get_output_mapping(self) -> dict[str, str]:
        """Map nothing: an editable installation's libraries lie in the checkout."""
        return {}


class Build(build):
    """The build with the kernels in it."""

    sub_commands = [*build.sub_commands, ("build_kernels", None)]


class Wheel(bdist_wheel):
    """A wheel that holds libraries is for one platform, and for every Python, since ctypes loads them."""

    def get_tag(self) -> tuple[str, str, str]:
        """Name the platform alone."""
        return (self.python_tag, "none", super().get_tag()[2])


class WithLibraries(Distribution):
    """A distribution that is for one platform where its kernels can be compiled."""

    def has_ext_modules(self) -> bool:
        """Say whether there is anything for one platform alone."""
        return load_compilation().can_compile()


link = ROOT / "fastcluster_lm" / "benchmarks"
if not (link / "__init__.py").is_file():
    raise SystemExit(
        f"{link.name}: expected a link to ../benchmarks inside fastcluster_lm, found none; "
        "check out again with git config core.symlinks true"
    )
setup(distclass=WithLibraries, cmdclass={"build": Build, "build_kernels": BuildKernels, "bdist_wheel": Wheel})
