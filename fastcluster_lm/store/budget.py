"""Keeps a run within store.max_mib and keep_maps: lets go of maps and old checkpoints, and never touches rows."""

from collections.abc import Callable, Mapping

import numpy as np

from fastcluster_lm.config import StoreConfig
from fastcluster_lm.errors import RunFolderError
from fastcluster_lm.store.disk_plan import MIB, ROWS_MARGIN, DiskPlan
from fastcluster_lm.store.folder import RunFolder
from fastcluster_lm.store.set_aside import PLACE


class DiskBudget:
    """The maps and checkpoints of one run on its way, and what may stand beside rows to come and two checkpoints."""

    def __init__(
        self,
        folder: RunFolder,
        limits: StoreConfig,
        plan: DiskPlan,
        is_key_frame: Callable[[int], bool],
        note: Callable[[str], None],
    ) -> None:
        self._folder, self._limits, self._plan, self._is_key_frame = folder, limits, plan, is_key_frame
        self._note, self._said = note, False
        # bytes by step; of checkpoints, those that have a newer one
        self._maps: dict[int, int] = {}
        self._old: dict[int, int] = {}
        self._room = 0
        if limits.max_mib:
            self._tell_of_set_aside()
        self.tidy()

    def write_map(self, step: int, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
        """Write a step's maps, after letting go of what would not fit beside them; where step 0's alone fit, none.

        Errors: as RunFolder.write_map
        """
        if self._limits.max_mib:
            if self._room < self._plan.map + self._maps.get(0, 0):
                self._say(f"store.max_mib={self._limits.max_mib} is reached: from step {step} on no map is saved")
                return
            self._let_go(self._room - self._plan.map, newest=None)
        self._folder.write_map(step, arrays, metadata)
        self._maps[step] = self._folder.map_size(step)
        self._keep_few()

    def tidy(self) -> None:
        """Measure the folder anew, and let go of what does not fit beside the rows to come and two checkpoints."""
        if not self._limits.max_mib and not self._limits.keep_maps:
            return
        self._maps = {step: self._folder.map_size(step) for step in self._folder.map_steps()}
        self._keep_few()
        if not self._limits.max_mib:
            return
        checkpoints = self._folder.checkpoint_sizes()
        sizes = self._folder.sizes()
        rows = max(sizes["rows"], round(self._plan.rows * ROWS_MARGIN))
        # the newest stays until the next is whole
        largest = max([self._plan.checkpoint, *checkpoints.values()])
        self._room = self._limits.max_mib * MIB - rows - sizes["beside"] - 2 * largest
        self._old = {step: size for step, size in checkpoints.items() if step != max(checkpoints)}
        if self._let_go(self._room, newest=max(self._maps, default=None)) > max(self._room, 0):
            self._say(
                f"store.max_mib={self._limits.max_mib} is passed: {self._folder.path} has nothing more to give up"
            )

    def _let_go(self, room: int, *, newest: int | None) -> int:
        """Let go of plain maps, oldest first, then old checkpoints, then key frames, till all fits; give the rest."""
        order = self._order(newest=newest)
        plain = [step for step in order if not self._is_key_frame(step)]
        used = sum(self._maps.values()) + sum(self._old.values())
        for step in plain:
            if used > room:
                used -= self._drop_map(step)
        for step in sorted(self._old):
            if used > room:
                self._folder.drop_checkpoint(step)
                used -= self._old.pop(step)
        for step in order[len(plain) :]:
            if used > room:
                used -= self._drop_map(step)
        return used

    def _keep_few(self) -> None:
        """Let go of the maps beyond store.keep_maps."""
        if most := self._limits.keep_maps:
            order = self._order(newest=max(self._maps, default=None))
            for step in order[: max(0, len(self._maps) - most)]:
                self._drop_map(step)

    def _order(self, *, newest: int | None) -> list[int]:
        """List the maps in the order that they go: oldest first, key frames last; step 0's and the newest never."""
        able = [step for step in sorted(self._maps) if step not in (0, newest)]
        return sorted(able, key=lambda step: (self._is_key_frame(step), step))

    def _drop_map(self, step: int) -> int:
        self._folder.drop_map(step)
        return self._maps.pop(step)

    def _tell_of_set_aside(self) -> None:
        """Say what was set aside, which is the user's and gives room to nothing."""
        try:
            size = self._folder.set_aside_size()
        except RunFolderError as error:
            self._note(f"{error}; store.max_mib does not count it")
            return
        if size:
            self._note(
                f"{self._folder.path / PLACE} takes {size / MIB:.3g} MiB, which store.max_mib={self._limits.max_mib} "
                "does not count"
            )

    def _say(self, text: str) -> None:
        if not self._said:
            self._note(text)
        self._said = True
