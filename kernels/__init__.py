"""The workshop: kernels for the hot places, one folder an op; reached as fastcluster_lm.kernels only."""

if __name__ != "fastcluster_lm.kernels":
    raise ImportError(
        f"this package was imported as {__name__!r}; it is fastcluster_lm.kernels. The bare name belongs to another "
        "package, which transformers imports: write `from fastcluster_lm.kernels import ...`, and take this "
        "repository's root off sys.path if another program asked for its own `kernels`"
    )

from fastcluster_lm.kernels.kmeans_assign import kmeans_assign
from fastcluster_lm.kernels.linear_cross_entropy import linear_cross_entropy
from fastcluster_lm.kernels.tsne_affinities import tsne_affinities
from fastcluster_lm.kernels.tsne_forces import start_descent

__all__ = ["kmeans_assign", "linear_cross_entropy", "start_descent", "tsne_affinities"]
