"""Write cuml_signatures.json: how the GPU libraries want the calls that our adapter makes to be made.

    python tests/scores/read_signatures.py FOLDER > tests/scores/cuml_signatures.json

FOLDER holds the unpacked wheels, or is the site-packages of an environment that has them; nothing in it is imported, so
neither a GPU nor CUDA's libraries are needed. What is compiled, and so has no source there, is named in COMPILED.
"""

import ast
import json
import re
import sys
from pathlib import Path

# call -> file that defines it, class or None, function; a call without a dot after its class is its constructor
SOURCES: dict[str, tuple[str, str | None, str]] = {
    "cuml.manifold.TSNE": ("cuml/manifold/t_sne.pyx", "TSNE", "__init__"),
    "cuml.manifold.TSNE.fit_transform": ("cuml/manifold/t_sne.pyx", "TSNE", "fit_transform"),
    "cuml.cluster.KMeans": ("cuml/cluster/kmeans.pyx", "KMeans", "__init__"),
    "cuml.cluster.KMeans.fit": ("cuml/cluster/kmeans.pyx", "KMeans", "fit"),
    "cupy.random.get_random_state": ("cupy/random/_generator.py", None, "get_random_state"),
    "cupy.random.set_random_state": ("cupy/random/_generator.py", None, "set_random_state"),
    "cupy.random.RandomState": ("cupy/random/_generator.py", "RandomState", "__init__"),
    # what faiss.contrib.torch_utils puts in the place of faiss.knn_gpu
    "faiss.knn_gpu": ("faiss/contrib/torch_utils.py", None, "torch_replacement_knn_gpu"),
    "faiss.get_num_gpus": ("faiss/swigfaiss.py", None, "get_num_gpus"),
    "faiss.StandardGpuResources": ("faiss/swigfaiss.py", "StandardGpuResources", "__init__"),
    "faiss.StandardGpuResources.setTempMemory": ("faiss/swigfaiss.py", "StandardGpuResources", "setTempMemory"),
}
# attributes that the adapter reads off fitted estimators
ATTRIBUTES = {
    "cuml.cluster.KMeans": ("labels_", "cluster_centers_", "n_iter_"),
}
# compiled from cupy/_core/dlpack.pyx, which the wheel leaves out: the docstring of cupy 14.2.0
COMPILED = {"cupy.from_dlpack": "(array, *, device=None, copy=None)"}
DISTRIBUTIONS = ("cuml_cu13", "cupy_cuda13x", "faiss_gpu")


def read_signatures(folder: Path) -> dict[str, str]:
    """Give the signature of every call whose source lies in the folder."""
    found = {}
    for call, (file, cls, function) in SOURCES.items():
        path = folder / file
        if path.exists():
            found[call] = _signature(path.read_text(), cls, function)
    return found


def read_attributes(folder: Path) -> dict[str, list[str]]:
    """Give, of the attributes that are read, those that the class's source sets."""
    found = {}
    for cls, names in ATTRIBUTES.items():
        file, name, _ = SOURCES[cls]
        path = folder / file
        if path.exists():
            body = _body_of(path.read_text(), name)
            found[cls] = [attribute for attribute in names if re.search(rf"self\.{attribute} = ", body)]
    return found


def parse(signature: str) -> ast.arguments:
    """Parse a signature as read_signatures gives it."""
    function = ast.parse(f"def function{signature}: pass").body[0]
    assert isinstance(function, ast.FunctionDef)
    return function.args


def _signature(source: str, cls: str | None, function: str) -> str:
    body = _body_of(source, cls)
    start = re.search(rf"^ *def {function}\(", body, re.MULTILINE)
    if start is None:
        raise SystemExit(f"{cls or ''} {function}: expected its definition, found none")
    depth, position = 1, start.end()
    while depth:
        depth += {"(": 1, ")": -1}.get(body[position], 0)
        position += 1
    arguments = parse("(" + body[start.end() : position])
    # the instance is not an argument of the call
    arguments.args = [argument for argument in arguments.args if argument.arg != "self"]
    return f"({ast.unparse(arguments)})"


def _body_of(source: str, cls: str | None) -> str:
    if cls is None:
        return source
    start = re.search(rf"^class {cls}\b", source, re.MULTILINE)
    if start is None:
        raise SystemExit(f"class {cls}: expected its definition, found none")
    # the first line after the class's head that is not indented; a head of several lines may end in one that is not
    following = re.compile(r"^[^\s)]", re.MULTILINE).search(source, start.end())
    return source[start.start() : following.start() if following else len(source)]


if __name__ == "__main__":
    where = Path(sys.argv[1])
    names = (path.name for path in where.glob("*.dist-info"))
    versions = {name: version for name, version in (part.removesuffix(".dist-info").split("-") for part in names)}
    record = {
        "versions": {name: versions[name] for name in DISTRIBUTIONS if name in versions},
        "signatures": {**read_signatures(where), **COMPILED},
        "attributes": read_attributes(where),
    }
    print(json.dumps(record, indent=1))
