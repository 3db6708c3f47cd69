"""What a finished run's files say once more work is done on them: instructions of its points, clusters of its maps."""

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from fastcluster_lm.data import split_instructions
from fastcluster_lm.engine import stored_config
from fastcluster_lm.scores import kmeans
from fastcluster_lm.scores.contingency import contingency_tables
from fastcluster_lm.store import RunFolder
from fastcluster_lm.tasks import taskset_from_dict

# restarts of KMeans for a table that is looked at
N_INIT = 3


def instruction_texts(folder: RunFolder) -> list[str]:
    """List a run's instructions in the order of their numbers, those of training first, then those of validation.

    Errors: RunFolderError or ConfigError if run.toml cannot be read
    """
    stored = folder.config()
    if "attached" in stored:
        # instances of a caller, whose texts it alone knows
        return []
    config = stored_config(stored, str(folder.path))
    split = split_instructions(
        taskset_from_dict(stored["taskset"]),
        n_train=config.data.n_train_instructions,
        n_val=config.data.n_val_instructions,
        seed=config.seed,
    )
    return [text for part in (split.train, split.val) for texts in part for text in texts]


def clusters_by_task(
    points: Float[np.ndarray, "layers n 2"], task: Int[np.ndarray, " n"]
) -> Int[np.ndarray, "layers k k"]:
    """Cluster each layer's map with KMeans and count points by cluster and task, a cluster in its best task's row.

    Shapes: points (layers, n, 2), task (n,) in 0..k-1 -> (layers, k, k) int64, rows clusters, columns tasks
    Source: the same matching as for F1, Hungarian; seed 0, so that the same map gives the same table
    """
    k = int(task.max()) + 1
    found = kmeans(points, min(k, len(task)), n_init=N_INIT, seed=0).labels
    tables = contingency_tables(np.broadcast_to(task, found.shape), found, n_true=k, n_pred=k)
    ordered = [table[:, linear_sum_assignment(table, maximize=True)[1]].T for table in np.asarray(tables)]
    return np.stack(ordered)
