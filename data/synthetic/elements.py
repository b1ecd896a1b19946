"""What a town consists of: plain records, coordinates in global metres rounded to 0.1 mm.

`hand` is +1 for right-hand and -1 for left-hand traffic.
"""

from dataclasses import dataclass, field

import numpy as np
from shapely.geometry.base import BaseGeometry


@dataclass(frozen=True)
class TownStyle:
    """What the streets of one town have in common."""

    hand: int
    lane_width: float  # metres
    corner_radius: float  # metres
    walkway_width: float  # metres; 0: grass right behind the kerb
    median_share: float  # share of wide roads with a raised median
    crossing_share: float  # share of junction arms with a crossing
    building_share: float
    tree_share: float
    center_color: str  # yellow or white
    dash: tuple[float, float]  # painted and free metres of a broken line
    crossing_style: str  # zebra or ladder
    wear: float  # share of the paint that has worn off


@dataclass
class Surface:
    """A polygon: exterior [N, 2] and holes, neither repeats its first point."""

    exterior: np.ndarray
    holes: list[np.ndarray] = field(default_factory=list)


@dataclass
class Segment(Surface):
    """A road segment of road `road`, or a junction (is_intersection)."""

    is_intersection: bool = False
    road: int = -1


@dataclass
class Lane(Surface):
    """A lane of a road between two junctions."""

    road: int = -1
    direction: int = 1  # +1: along the road's s, -1: against it
    rank: int = 0  # 0: next to the centre of the road
    edges: tuple[float, float] = (0.0, 0.0)  # d of the edge towards the centre of the road and of the other one
    center: np.ndarray | None = None  # [N, 2] in driving direction
    from_edge: np.ndarray | None = None  # [2, 2]
    to_edge: np.ndarray | None = None  # [2, 2]
    junction_from: int = -1
    junction_to: int = -1
    left_divider: int = -1  # index into Town.lines, -1: none
    right_divider: int = -1


@dataclass
class RoadBlock(Surface):
    """All lanes of one direction of a road."""

    road: int = -1
    from_edge: np.ndarray | None = None
    to_edge: np.ndarray | None = None


@dataclass
class Connector(Surface):
    """The way through a junction from one lane to another (indices into Town.lanes)."""

    lane_from: int = -1
    lane_to: int = -1
    center: np.ndarray | None = None


@dataclass
class Crossing(Surface):
    """A pedestrian crossing; `stripes` are the painted quads [4, 2]."""

    road: int = -1
    stripes: list[np.ndarray] = field(default_factory=list)


@dataclass
class StopLine(Surface):
    """A stop line before a crossing (index into Town.crossings)."""

    crossing: int = -1
    road: int = -1


@dataclass
class PaintedLine:
    """A painted line. kind: road_divider, lane_divider, or edge (painted, but no divider)."""

    kind: str
    pts: np.ndarray  # [N, 2]
    color: str  # white or yellow
    pattern: str  # solid, double or dashed
    road: int = -1
    d: float = 0.0  # metres left of the road's middle


@dataclass(frozen=True)
class Box:
    """An upright box: base centre (x, y), yaw, size along its own x, y and z in metres."""

    kind: str  # building, hedge, pole
    x: float
    y: float
    yaw: float
    size: tuple[float, float, float]
    color: tuple[int, int, int]  # RGB
    look: int  # picks the facade


@dataclass(frozen=True)
class Tree:
    """A trunk with a round crown."""

    x: float
    y: float
    height: float  # metres, of the crown's centre
    radius: float
    color: tuple[int, int, int]


@dataclass
class Town:
    """One town: streets, paint and what stands beside them."""

    key: str
    location: str
    style: TownStyle
    segments: list[Segment]
    lanes: list[Lane]
    blocks: list[RoadBlock]
    connectors: list[Connector]
    crossings: list[Crossing]
    stop_lines: list[StopLine]
    lines: list[PaintedLine]
    patches: list[np.ndarray]  # quads of darker asphalt [4, 2]
    drivable: BaseGeometry
    walkway: BaseGeometry
    boxes: list[Box]
    trees: list[Tree]


def rounded(pts: np.ndarray) -> np.ndarray:
    """Coordinates rounded to 0.1 mm, so that shared corners of neighbours are the same numbers."""
    return np.round(np.asarray(pts, np.float64), 4)


def oriented_rectangle(x: float, y: float, yaw: float, length: float, width: float) -> np.ndarray:
    """Corners [4, 2], counter-clockwise, of a rectangle around (x, y) with its length along yaw."""
    along = np.array([np.cos(yaw), np.sin(yaw)]) * length / 2
    across = np.array([-np.sin(yaw), np.cos(yaw)]) * width / 2
    return np.array([x, y]) + np.array([along - across, along + across, across - along, -along - across])
