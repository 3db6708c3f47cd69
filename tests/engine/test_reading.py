"""What is computed from a run's files for its page: clusters worked out by hand, texts against the instances."""

import numpy as np

from fastcluster_lm.data import Vocabulary
from fastcluster_lm.engine import Rooms
from fastcluster_lm.engine.reading import clusters_by_task, instruction_texts
from fastcluster_lm.tasks import taskset_from_dict
from fastcluster_lm.views.report.frames import read_frames
from fastcluster_lm.views.report.history import read_history
from tests.laws.conftest import run_to_end, small  # noqa: F401


def test_separated_tasks_stand_on_the_diagonal_and_mixed_ones_do_not():
    task = np.repeat([0, 1, 2], 10)
    centres = np.array([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    apart = centres[task] + np.random.default_rng(0).normal(size=(30, 2))
    # two tasks share one place, and the third lies in two
    together = np.where(np.isin(task, (0, 1))[:, None], [0.0, 0.0], np.repeat([[50.0, 0.0], [0.0, 50.0]], 15, 0))
    tables = clusters_by_task(np.stack([apart, together]).astype(np.float32), task)
    assert (tables[0] == np.diag([10, 10, 10])).all()
    assert tables.sum((1, 2)).tolist() == [30, 30] and sorted(tables[1].max(1)) == [0, 10, 10]


def test_every_point_of_a_map_has_the_instruction_that_the_model_read(small, tmp_path):  # noqa: F811
    folder = run_to_end(small, tmp_path / "run").folder
    texts = instruction_texts(folder)
    labels = read_frames(read_history(folder), [0]).sets[0]
    taskset = taskset_from_dict(folder.config()["taskset"])
    run = Rooms(small, taskset)
    vocabulary = Vocabulary.of(taskset)
    assert run.probe is not None
    shown = [
        run.probe.sources[name].instances.select(run.probe.sources[name].points.on_map) for name in ("train", "val")
    ]
    read = ["".join(vocabulary.decode(tokens[:-1])) for part in shown for tokens in part.tokens.tolist()]
    assert [texts[number] for number in labels["instruction"]] == read
    assert labels["split"].tolist() == [0] * 48 + [1] * 48
