"""PNG figures of a made run: they are there, they hold the classes' colours, and their pixels are the scores."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.colors import to_rgb  # noqa: E402
from matplotlib.image import imread  # noqa: E402

from fastcluster_lm.errors import DataError, UsageError  # noqa: E402
from fastcluster_lm.views.figures import write_figures  # noqa: E402
from fastcluster_lm.views.report.look import PALETTE  # noqa: E402
from tests.views.report.made_run import make_run  # noqa: E402


def count(image: np.ndarray, colour: str) -> int:
    return int((abs(image[..., :3] - np.array(to_rgb(colour))).max(-1) < 0.02).sum())


def test_figures_show_every_task_and_are_the_same_twice(tmp_path):
    run = make_run(tmp_path / "run")
    for step in (0, 50, 100, 200):
        run.add(step)
    written = write_figures(run.folder, tmp_path / "one")
    assert [path.name for path in written] == ["run.png", "scores.png", "maps.png"]
    for name in ("run.png", "maps.png"):
        image = imread(tmp_path / "one" / name)
        assert all(count(image, PALETTE[task]) > 50 for task in range(3)), name
    # a fourth task there is not
    assert count(image, PALETTE[3]) == 0
    again = write_figures(run.folder, tmp_path / "two")
    assert [path.read_bytes() for path in written] == [path.read_bytes() for path in again]
    # another probe is another picture
    run.add(300)
    assert write_figures(run.folder, tmp_path / "three")[1].read_bytes() != written[1].read_bytes()


def test_a_run_without_maps_has_its_scores_and_one_without_scores_says_so(tmp_path):
    run = make_run(tmp_path / "run")
    with pytest.raises(DataError, match="has no scores.*--probe-every"):
        write_figures(run.folder, tmp_path / "out")
    run.add(0)
    (run.folder.path / "maps" / "step-000000.safetensors").unlink()
    assert [path.name for path in write_figures(run.folder, tmp_path / "out")] == ["run.png", "scores.png"]


def test_the_figures_are_of_the_token_that_is_asked_for(tmp_path):
    run = make_run(tmp_path / "run", positions=("instruction", "input"))
    for step in (0, 100):
        run.add(step)
    first, asked, second = (
        [path.read_bytes() for path in write_figures(run.folder, tmp_path / str(at), position)]
        for at, position in enumerate((None, "instruction", "input"))
    )
    assert first == asked and all(one != other for one, other in zip(first, second, strict=True))
    with pytest.raises(UsageError, match="--position: expected one of the run's tokens"):
        write_figures(run.folder, tmp_path / "none", "output")
