"""The libraries that a probe is measured against, one layer a call as they take it; ours is not here."""

import importlib.util
import warnings
from collections.abc import Callable

import numpy as np
import torch

Layer = np.ndarray


def tsne_peers(threads: int) -> dict[str, Callable[[Layer], np.ndarray]]:
    """Give each library's t-SNE at its defaults, with all threads; TorchDR's where it is installed."""
    peers: dict[str, Callable[[Layer], np.ndarray]] = {"openTSNE": lambda x: _opentsne(x, threads), "scikit-learn": _sk}
    if importlib.util.find_spec("torchdr") is not None:
        peers["TorchDR"] = _torchdr
    return peers


def kmeans_peers(k: int) -> dict[str, Callable[[Layer], np.ndarray]]:
    """Give each library's KMeans with ten restarts."""
    return {"scikit-learn": lambda x: _sk_kmeans(x, k), "faiss": lambda x: _faiss_kmeans(x, k)}


def knn(x: Layer, k: int) -> np.ndarray:
    """faiss-cpu's exact neighbours, without the point itself."""
    import faiss

    index = faiss.IndexFlatL2(x.shape[1])
    index.add(x)
    return index.search(x, k + 1)[1][:, 1:]


def agreement(true: np.ndarray, pred: np.ndarray) -> tuple[float, float]:
    """scikit-learn's ARI and AMI."""
    from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score

    return adjusted_rand_score(true, pred), adjusted_mutual_info_score(true, pred)


def _opentsne(x: Layer, threads: int) -> np.ndarray:
    from openTSNE import TSNE

    return np.asarray(TSNE(n_jobs=threads, random_state=0).fit(x))


def _sk(x: Layer) -> np.ndarray:
    from sklearn.manifold import TSNE

    return TSNE(random_state=0).fit_transform(x)


def _torchdr(x: Layer) -> np.ndarray:
    import torchdr

    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torchdr.TSNE(random_state=0, device="cpu").fit_transform(torch.from_numpy(x))
    torch.set_rng_state(state)
    return found.detach().numpy()


def _sk_kmeans(x: Layer, k: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    return KMeans(k, n_init=10, random_state=0).fit(x).labels_


def _faiss_kmeans(x: Layer, k: int) -> np.ndarray:
    import faiss

    # all points, not faiss's sample of 256 a cluster
    model = faiss.Kmeans(x.shape[1], k, nredo=10, seed=0, min_points_per_centroid=1, max_points_per_centroid=len(x))
    model.train(x)
    return model.index.search(x, 1)[1][:, 0]
