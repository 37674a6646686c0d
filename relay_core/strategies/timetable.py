"""When a relay does what at a site: its stages, the turns of the adversarial game, and the progress of both budgets."""

from __future__ import annotations

from dataclasses import dataclass

from relay_core.config import DoubleGanKwargs
from relay_core.strategies.base import Position


@dataclass(frozen=True)
class Timetable:
    """Which stage a step of a site's training is in, and whether the game is played in it."""

    settings: DoubleGanKwargs
    batch: int
    """Images a step, over all processes."""
    replays: bool
    """Whether there are sites before that generators draw."""
    plays: bool
    """Whether the game is played at this site."""

    def stage(self, progress: float) -> int:
        """Return the stage, 1 to 3, at a share of the budget."""
        stages = self.settings.num_stages
        if not self.replays:
            late = stages == 3 and self.settings.corrections.third_stage_at_first_site and progress >= 2 / 3
            return 3 if late else 1
        return 2 if stages == 1 else min(stages, int(progress * stages) + 1)

    def turn(self, position: Position) -> int | None:
        """Return the number of the game's step that falls on this step, from 0; None where none does."""
        s = self.settings
        if not self.plays:
            return None
        step, shared = position.step, position.solver_steps if s.train_solver else 0
        if s.gan_after_solver:
            return step - shared if step >= shared else None
        if s.num_stages == 3 and self.replays:
            shared = min(shared, -(-2 * position.steps // 3))  # the third stage is the solver's
        if s.gan_num_mimgs is not None:
            batch = min(self.batch, s.gan_batch_size or self.batch)
            turns = min(shared, max(1, round(s.gan_num_mimgs * 1e6 / batch)))
        else:
            turns = -(-shared // s.solver_steps_a_turn)
        if step >= shared:  # the game's alone
            return turns + step - shared
        return step * turns // shared if step * turns % shared < turns else None

    def progress(self, position: Position) -> tuple[float, float]:
        """Return which share of their budgets solver and game have done, for schedules of the learning rate."""
        if not self.settings.gan_after_solver:
            return position.progress, position.progress
        ready, rest = position.solver_steps, position.steps - position.solver_steps
        return min(1.0, position.step / max(1, ready)), max(0.0, (position.step - ready) / max(1, rest))
