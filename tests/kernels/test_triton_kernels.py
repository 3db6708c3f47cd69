"""Every Triton kernel: interpreted, against float64; compiled for GPUs, within its budget; on a GPU if there is one."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.kernels.cases import all_cases, describe
from tests.kernels.processes import run_lines, run_script

pytest.importorskip("triton")
pytestmark = pytest.mark.triton

HERE = Path(__file__).parent
BUDGETS = tomllib.loads((HERE / "budgets.toml").read_text())
# most bytes of shared memory that a block may have
SHARED_LIMIT = {80: 166912, 90: 232448, 100: 232448}
CASES = all_cases()


@pytest.mark.parametrize("name", CASES)
def test_in_the_interpreter(name: str) -> None:
    assert len(run_lines("interpret.py", name, "SHAPES", TRITON_INTERPRET="1")) == len(CASES[name].SHAPES)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_in_the_interpreter_on_every_shape(name: str) -> None:
    assert len(run_lines("interpret.py", name, "SLOW", TRITON_INTERPRET="1")) == len(CASES[name].SLOW)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "shape"), [(name, shape) for name, case in CASES.items() for shape in case.SHAPES + case.SLOW]
)
def test_on_a_gpu(name: str, shape: tuple[int, ...]) -> None:
    CASES[name].check(shape, torch.device("cuda"))


def launches() -> Iterator[tuple[str, str]]:
    """Give every kernel with every tile that it can be launched with."""
    for case in CASES.values():
        for kernel in case.kernels():
            for tile in kernel.tiles:
                yield kernel.name, describe(tile)


def test_every_launch_has_a_budget_and_every_budget_a_launch() -> None:
    budgeted = {(kernel, tile) for kernel, tiles in BUDGETS.items() for tile in tiles}
    assert set(launches()) == budgeted
    expected = {f"sm_{capability}" for capability in SHARED_LIMIT}
    assert all(set(row) == expected for tiles in BUDGETS.values() for row in tiles.values())


def test_what_is_launched_is_what_was_compiled() -> None:
    rows = run_script("launches.py")
    known = [kernel for case in CASES.values() for kernel in case.kernels()]
    assert {row["function"] for row in rows} == {kernel.function.__name__ for kernel in known}
    for row in rows:
        launched = {**row["constants"], **row["options"]}
        fitting = [
            tile
            for kernel in known
            if kernel.function.__name__ == row["function"] and kernel.signature(row["constants"]) == row["signature"]
            for tile in kernel.tiles
            if tile.items() <= launched.items()
        ]
        assert len(fitting) == 1, row
        # a pointer that is not aligned would be compiled anew, into something that has no budget
        assert row["unaligned"] == [], row


def hold(row: dict) -> None:
    """Hold what a compiled kernel needs against its budget: registers as written down, nothing spilled."""
    budget = BUDGETS.get(row["kernel"], {}).get(row["tile"], {}).get(f"sm_{row['sm']}")
    assert budget is not None, f"no budget for {row}"
    assert row["spills"] == row["stack"] == row["local"] == 0, f"registers are spilled: {row}"
    assert row["registers"] <= budget, f"expected at most {budget} registers: {row}"
    assert row["shared"] <= SHARED_LIMIT[row["sm"]], row


@pytest.mark.parametrize("name", CASES)
def test_compiles_within_its_budget_for_every_architecture(name: str, tmp_path: Path) -> None:
    rows = compiled(name, ",".join(map(str, SHARED_LIMIT)), tmp_path)
    assert len(rows) == len(SHARED_LIMIT) * sum(len(kernel.tiles) for kernel in CASES[name].kernels())
    for row in rows:
        hold(row)


def compiled(name: str, capabilities: str, cache: Path) -> list[dict]:
    """Compile a case ahead of time, from nothing."""
    return run_script("aot.py", capabilities, name, TRITON_CACHE_DIR=str(cache))


def test_a_spill_an_unknown_tile_and_too_many_registers_are_refused() -> None:
    (kernel, tiles), *_ = BUDGETS.items()
    (tile, budget), *_ = tiles.items()
    row = {"kernel": kernel, "tile": tile, "sm": 90, "registers": budget["sm_90"], "shared": 0}
    row |= dict.fromkeys(("spills", "stack", "local"), 0)
    hold(row)
    for fault in (
        {"spills": 2},
        {"stack": 8},
        {"registers": budget["sm_90"] + 1},
        {"tile": "BLOCK=1"},
        {"shared": 2**20},
    ):
        with pytest.raises(AssertionError):
            hold({**row, **fault})
