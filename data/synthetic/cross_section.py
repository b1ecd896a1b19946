"""The cross-section of a road: lanes, median, shoulders."""

from dataclasses import dataclass

import numpy as np

from data.synthetic.elements import TownStyle


@dataclass(frozen=True)
class CrossSection:
    """Widths in metres; `axis` is the d of the line between the directions, d counts to the left."""

    forward: int
    backward: int
    lane_width: float
    median: float
    shoulder: float
    axis: float
    hand: int

    @property
    def half_width(self) -> float:
        """From the middle of the road to its kerb."""
        return self.median / 2 + (self.forward + self.backward) * self.lane_width / 2 + self.shoulder

    def lane_edges(self, direction: int, rank: int) -> tuple[float, float]:
        """(inner, outer) d of a lane; inner is next to the centre of the road."""
        side = -self.hand * direction
        inner = self.axis + side * (self.median / 2 + rank * self.lane_width)
        return inner, inner + side * self.lane_width

    def lanes(self) -> list[tuple[int, int]]:
        """(direction, rank) of every lane."""
        ranks = [(1, rank) for rank in range(self.forward)]
        return ranks + [(-1, rank) for rank in range(self.backward)]

    def columns(self) -> list[float]:
        """All d at which something begins or ends, from right to left."""
        found = {-self.half_width, self.half_width}
        for direction, rank in self.lanes():
            found.update(self.lane_edges(direction, rank))
        ordered = sorted(found)
        return [d for i, d in enumerate(ordered) if i == 0 or d - ordered[i - 1] > 1e-6]


def make_cross_section(rng: np.random.Generator, style: TownStyle, one_way: bool) -> CrossSection:
    """A random cross-section in the town's style."""
    if one_way:
        forward, backward = int(rng.integers(2, 5)), 0
    else:
        forward = int(rng.choice([1, 2, 3], p=[0.38, 0.44, 0.18]))
        backward = forward if rng.random() < 0.7 else max(1, forward - 1)
    lane_width = style.lane_width + float(rng.choice([-0.15, 0.0, 0.2]))
    wide = forward + backward >= 3 and not one_way
    median = float(rng.uniform(1.2, 5.0)) if wide and rng.random() < style.median_share else 0.0
    shoulder = float(rng.choice([0.0, 0.4, 1.2, 2.5], p=[0.35, 0.25, 0.2, 0.2]))
    axis = style.hand * (forward - backward) * lane_width / 2
    return CrossSection(forward, backward, lane_width, median, shoulder, axis, style.hand)
