"""One road between two junctions: cross-section, crossings, medians, dividers, lanes.

Everything stands on one grid of points P[station, column] (stations along the road, columns across it), so
that neighbouring polygons share their corners exactly and unions leave no slivers.
"""

from dataclasses import dataclass, field

import numpy as np
from shapely.geometry import Polygon

from data.synthetic.cross_section import CrossSection
from data.synthetic.curves import Curve
from data.synthetic.elements import (
    Crossing,
    Lane,
    PaintedLine,
    RoadBlock,
    Segment,
    StopLine,
    TownStyle,
    rounded,
)

STRIPE = 0.5  # width of a zebra stripe, metres
STOP_BAR = 0.4  # width of a stop line, metres


@dataclass
class Road:
    """A road cut at its junctions; `start` and `end` are the s of the cuts on the curve."""

    index: int
    curve: Curve
    section: CrossSection
    junction_start: int
    junction_end: int
    start: float = 0.0
    end: float = 0.0
    stations: list[float] = field(default_factory=list)
    columns: list[float] = field(default_factory=list)
    grid: np.ndarray | None = None  # [S, D, 2]

    def column(self, d: float) -> int:
        """Index of the column at d."""
        return int(np.argmin(np.abs(np.asarray(self.columns) - d)))

    def station(self, s: float) -> int:
        """Index of the station nearest to s."""
        return int(np.argmin(np.abs(np.asarray(self.stations) - s)))

    def block(self, s_low: float, s_high: float, d_low: float, d_high: float) -> np.ndarray:
        """Outline [N, 2] of the part between two stations and two columns, through every grid point on it."""
        i0, i1 = self.station(s_low), self.station(s_high)
        j0, j1 = sorted((self.column(d_low), self.column(d_high)))
        part = self.grid[i0 : i1 + 1, j0 : j1 + 1]
        return np.concatenate([part[:, 0], part[-1, 1:], part[-2::-1, -1], part[0, -2:0:-1]])

    def line(self, s_low: float, s_high: float, d: float) -> np.ndarray:
        """Points [N, 2] along column d between two stations."""
        return self.grid[self.station(s_low) : self.station(s_high) + 1, self.column(d)]

    def full_outline(self) -> Polygon:
        """The road from kerb to kerb, medians included."""
        return Polygon(self.block(self.start, self.end, -self.section.half_width, self.section.half_width))


@dataclass
class RoadParts:
    """What one road adds to its town."""

    segments: list[Segment] = field(default_factory=list)
    lanes: list[Lane] = field(default_factory=list)
    blocks: list[RoadBlock] = field(default_factory=list)
    crossings: list[Crossing] = field(default_factory=list)
    stop_lines: list[StopLine] = field(default_factory=list)
    lines: list[PaintedLine] = field(default_factory=list)
    patches: list[np.ndarray] = field(default_factory=list)


def furnish_road(rng: np.random.Generator, road: Road, style: TownStyle) -> RoadParts:
    """Lay out one road: fills its grid and returns its polygons and paint."""
    bands = _place_crossings(rng, road, style)
    free = _free_intervals(road, bands)
    medians = _place_medians(rng, road, free)
    road.columns = road.section.columns()
    special = [s for interval in (*bands, *free, *medians) for s in interval]
    stations = sorted({*road.curve.stations(road.start, road.end), *special})
    keep_apart = [s for s in stations if s in special or min([abs(s - x) for x in special] + [9.0]) > 0.3]
    road.stations = sorted({road.start, road.end, *keep_apart})
    road.grid = rounded(road.curve.at(np.array(road.stations)[:, None], np.array(road.columns)[None]))

    parts = RoadParts()
    _add_segments(rng, road, medians, parts)
    _add_lanes(road, parts)
    _add_crossings(road, style, bands, parts)
    _add_stop_lines(rng, road, bands, parts)
    _add_lines(rng, road, style, free, parts)
    _add_patches(rng, road, parts)
    return parts


def _place_crossings(rng: np.random.Generator, road: Road, style: TownStyle) -> list[tuple[float, float]]:
    bands = []
    width = float(rng.uniform(2.6, 4.5))
    if rng.random() < style.crossing_share:
        low = road.start + float(rng.uniform(0.6, 2.0))
        bands.append((low, low + width))
    if road.end - road.start > 75 and rng.random() < 0.45:
        low = (road.start + road.end) / 2 + float(rng.uniform(-12, 12))
        bands.append((low, low + width))
    if rng.random() < style.crossing_share:
        high = road.end - float(rng.uniform(0.6, 2.0))
        bands.append((high - width, high))
    return bands


def _free_intervals(road: Road, bands: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Where dividers run: between the crossings, with room for the stop lines."""
    edges = [road.start - 0.6, *[s for band in bands for s in band], road.end + 0.6]
    intervals = [(edges[i] + 1.9, edges[i + 1] - 1.9) for i in range(0, len(edges), 2)]
    return [(low, high) for low, high in intervals if high - low > 5.0]


def _place_medians(rng: np.random.Generator, road: Road, free: list) -> list[tuple[float, float]]:
    if road.section.median == 0:
        return []
    medians = []
    for low, high in free:
        low, high = low + 2.5, high - 2.5
        if high - low > 60 and rng.random() < 0.5:  # a gap to turn through
            middle = float(rng.uniform(0.4, 0.6)) * (low + high)
            middle = min(max(middle, low + 20), high - 20)
            medians += [(low, middle - 5), (middle + 5, high)]
        elif high - low > 12:
            medians.append((low, high))
    return medians


def _add_segments(rng: np.random.Generator, road: Road, medians: list, parts: RoadParts) -> None:
    """Road segments: a median is a hole of a segment, or is left open between segments side by side."""
    half, section = road.section.half_width, road.section
    left, right = section.axis + section.median / 2, section.axis - section.median / 2
    cuts = [road.start, road.end]
    side_by_side = bool(medians) and rng.random() < 0.4
    if side_by_side:
        cuts += [s for median in medians for s in median]
    elif not medians and rng.random() < 0.5:
        cuts.append(road.stations[len(road.stations) // 2])
    cuts = sorted(set(cuts))
    for low, high in zip(cuts[:-1], cuts[1:], strict=True):
        if side_by_side and (low, high) in medians:
            for d_low, d_high in ((-half, right), (left, half)):
                parts.segments.append(Segment(road.block(low, high, d_low, d_high), road=road.index))
            continue
        holes = [] if side_by_side else [_median_ring(road, median) for median in medians]
        parts.segments.append(Segment(road.block(low, high, -half, half), holes, road=road.index))


def _median_ring(road: Road, median: tuple[float, float]) -> np.ndarray:
    """A median with rounded noses: its long sides are the inner edges of the lanes."""
    low, high = median
    section = road.section
    radius = section.median / 2
    angles = np.deg2rad([54.0, 18.0, -18.0, -54.0])
    far = road.curve.at(high + radius * np.cos(angles), section.axis + radius * np.sin(angles))
    near = road.curve.at(low - radius * np.cos(angles), section.axis - radius * np.sin(angles))
    left = road.line(low, high, section.axis + radius)
    right = road.line(low, high, section.axis - radius)
    return np.concatenate([left, rounded(far), right[::-1], rounded(near)])


def _add_lanes(road: Road, parts: RoadParts) -> None:
    section = road.section
    for direction, rank in section.lanes():
        inner, outer = section.lane_edges(direction, rank)
        sides = np.stack([road.line(road.start, road.end, d) for d in (inner, outer)])[:, ::direction]
        ends = (road.junction_start, road.junction_end)[::direction]
        parts.lanes.append(
            Lane(
                road.block(road.start, road.end, inner, outer),
                road=road.index,
                direction=direction,
                rank=rank,
                edges=(inner, outer),
                center=sides.mean(axis=0),
                from_edge=sides[:, 0],
                to_edge=sides[:, -1],
                junction_from=ends[0],
                junction_to=ends[1],
            )
        )
    for direction, count in ((1, section.forward), (-1, section.backward)):
        if count:
            inner, outer = section.lane_edges(direction, 0)[0], section.lane_edges(direction, count - 1)[1]
            sides = np.stack([road.line(road.start, road.end, d) for d in (inner, outer)])[:, ::direction]
            outline = road.block(road.start, road.end, inner, outer)
            parts.blocks.append(RoadBlock(outline, [], road.index, sides[:, 0], sides[:, -1]))


def _quad(road: Road, s_low: float, s_high: float, d_low: float, d_high: float) -> np.ndarray:
    return rounded(road.curve.at(np.array([s_low, s_high, s_high, s_low]), np.array([d_low, d_low, d_high, d_high])))


def _add_crossings(road: Road, style: TownStyle, bands: list, parts: RoadParts) -> None:
    reach = road.section.half_width - 0.35
    num_stripes = int((2 * reach + STRIPE) / (2 * STRIPE))
    first = -(2 * num_stripes - 1) * STRIPE / 2
    for low, high in bands:
        stripes = [_quad(road, low, high, d, d + STRIPE) for d in first + 2 * STRIPE * np.arange(num_stripes)]
        if style.crossing_style == "ladder":
            stripes += [_quad(road, s, s + 0.25, first, -first) for s in (low, high - 0.25)]
        across = np.linspace(first, -first, 5)
        outline = np.concatenate(
            [road.curve.at(np.full(5, low), across), road.curve.at(np.full(5, high), across[::-1])]
        )
        parts.crossings.append(Crossing(rounded(outline), [], road.index, stripes))


def _add_stop_lines(rng: np.random.Generator, road: Road, bands: list, parts: RoadParts) -> None:
    section = road.section
    for index, (low, high) in enumerate(bands):
        for direction, count in ((1, section.forward), (-1, section.backward)):
            if not count or rng.random() < 0.25:
                continue
            inner, outer = section.lane_edges(direction, 0)[0], section.lane_edges(direction, count - 1)[1]
            s = low - 1.3 if direction == 1 else high + 1.3 - STOP_BAR
            behind = s - road.start if direction == 1 else road.end - s
            if behind > 5.0:  # none between a junction and the crossing right behind it
                parts.stop_lines.append(StopLine(_quad(road, s, s + STOP_BAR, inner, outer), [], index, road.index))


def _add_lines(rng: np.random.Generator, road: Road, style: TownStyle, free: list, parts: RoadParts) -> None:
    section = road.section
    center_pattern = str(rng.choice(["double", "solid", "dashed"], p=[0.5, 0.25, 0.25]))
    edge_lines = section.shoulder >= 1.0 and rng.random() < 0.6
    for low, high in free:
        if section.backward and not section.median:
            d = section.axis
            pts = road.line(low, high, d)
            parts.lines.append(PaintedLine("road_divider", pts, style.center_color, center_pattern, road.index, d))
        for direction, count in ((1, section.forward), (-1, section.backward)):
            for rank in range(count - 1):
                d = section.lane_edges(direction, rank)[1]
                for s_low, s_high, pattern in _divider_pieces(rng, road, low, high, direction):
                    pts = road.line(s_low, s_high, d)
                    parts.lines.append(PaintedLine("lane_divider", pts, "white", pattern, road.index, d))
            if edge_lines and count:
                d = section.lane_edges(direction, count - 1)[1]
                pts = road.line(low, high, d)
                parts.lines.append(PaintedLine("edge", pts, "white", "solid", road.index, d))


def _divider_pieces(
    rng: np.random.Generator, road: Road, low: float, high: float, direction: int
) -> list[tuple[float, float, str]]:
    """Broken, with a solid piece before a junction on some lanes."""
    stations = [s for s in road.stations if low + 12 < s < high - 12]
    if not stations or rng.random() < 0.6:
        return [(low, high, "dashed")]
    if direction == 1:
        middle = min(stations, key=lambda s: abs(high - 22 - s))
        return [(low, middle, "dashed"), (middle, high, "solid")]
    middle = min(stations, key=lambda s: abs(low + 22 - s))
    return [(low, middle, "solid"), (middle, high, "dashed")]


def _add_patches(rng: np.random.Generator, road: Road, parts: RoadParts) -> None:
    """Repaired asphalt: a distraction."""
    for _ in range(int(rng.integers(0, 5))):
        s = float(rng.uniform(road.start, road.end - 8))
        length = float(rng.uniform(1, 8))
        direction, rank = road.section.lanes()[int(rng.integers(len(road.section.lanes())))]
        inner, outer = road.section.lane_edges(direction, rank)
        share = np.sort(rng.uniform(0.05, 0.95, 2))
        parts.patches.append(_quad(road, s, s + length, *(inner + share * (outer - inner))))
