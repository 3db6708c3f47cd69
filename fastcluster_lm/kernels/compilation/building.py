"""Build the libraries that a folder lacks, in parallel; it loads none of them."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from . import compilers
from .compilers import CompilationError
from .library_folder import Unusable, keep, library_name, room


def build(sources: Sequence[Path], level: str, folder: Path) -> str:
    """Compile the sources for a level into a folder, as many at once as there are cores; gives the compiler's version.

    Each library is kept as soon as it is whole, so that a build that was stopped is gone on with
    Errors: CompilationError without a compiler, or where it fails, or the folder cannot hold what it makes
    """
    compiler = compilers.find()
    by = compilers.version(compiler)
    try:
        with room(folder) as building:
            targets = {source: building / library_name(source, level) for source in sources}
            include = sources[0].parent.parent
            with closing(compilers.compile_all(compiler, targets, level, include)) as compiled:
                for source in compiled:
                    keep(targets[source], folder / targets[source].name, by)
    except Unusable as error:
        raise CompilationError(str(error)) from error
    except OSError as error:
        raise CompilationError(f"cannot write {folder}: {error.strerror or error}") from error
    return by
