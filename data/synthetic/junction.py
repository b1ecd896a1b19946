"""Junctions: where the roads are cut, the shape of the junction, the ways through it."""

import numpy as np

from data.synthetic.curves import cubic_connection, quadratic_bezier
from data.synthetic.elements import Connector, Lane, Segment, rounded
from data.synthetic.road import Road

NEARLY_STRAIGHT = 0.35  # |sin| of the angle between two arms below which their kerbs are taken as one line


def arms_of(roads: list[Road], junction: int) -> list[tuple[Road, bool]]:
    """(road, whether it starts here) of every arm, counter-clockwise."""
    arms = [(road, True) for road in roads if road.junction_start == junction]
    arms += [(road, False) for road in roads if road.junction_end == junction]
    return sorted(arms, key=lambda arm: _angle(*arm))


def _angle(road: Road, starts: bool) -> float:
    """The direction in which an arm leaves the junction, in radians."""
    return float(np.arctan2(*(_outward(road, starts)[::-1])))


def _outward(road: Road, starts: bool) -> np.ndarray:
    pts = road.curve.pts
    step = pts[1] - pts[0] if starts else pts[-2] - pts[-1]
    return step / np.linalg.norm(step)


def cut_distances(arms: list[tuple[Road, bool]], corner_radius: float) -> list[float]:
    """For each arm the distance from the junction's node at which its road begins, in metres."""
    reach = [4.0] * len(arms)
    for i in range(len(arms)):
        j = (i + 1) % len(arms)
        gap = (_angle(*arms[j]) - _angle(*arms[i])) % (2 * np.pi)
        width_i, width_j = arms[i][0].section.half_width, arms[j][0].section.half_width
        if np.sin(gap) > NEARLY_STRAIGHT:
            reach[i] = max(reach[i], (width_j + width_i * np.cos(gap)) / np.sin(gap))
            reach[j] = max(reach[j], (width_i + width_j * np.cos(gap)) / np.sin(gap))
    return [distance + corner_radius for distance in reach]


def _cut_points(road: Road, starts: bool) -> np.ndarray:
    """The road's corners at the junction [D, 2], counter-clockwise around the junction."""
    return road.grid[0] if starts else road.grid[-1, ::-1]


def junction_outline(arms: list[tuple[Road, bool]]) -> np.ndarray:
    """Outline [N, 2]: the cuts of the arms, joined by rounded corners."""
    pieces = []
    for i in range(len(arms)):
        j = (i + 1) % len(arms)
        here, there = _cut_points(*arms[i]), _cut_points(*arms[j])
        pieces.append(here)
        a, b = here[-1], there[0]
        direction_a, direction_b = _outward(*arms[i]), _outward(*arms[j])
        cross = direction_a[0] * direction_b[1] - direction_a[1] * direction_b[0]
        control = (a + b) / 2
        if abs(cross) > NEARLY_STRAIGHT:
            between = b - a
            control = a + direction_a * (between[0] * direction_b[1] - between[1] * direction_b[0]) / cross
        pieces.append(rounded(quadratic_bezier(a, control, b, 9)[1:-1]))
    return np.concatenate(pieces)


def junction_segment(arms: list[tuple[Road, bool]]) -> Segment:
    """The road segment of a junction."""
    return Segment(junction_outline(arms), is_intersection=True)


def _heading(lane: Lane, at_end: bool) -> np.ndarray:
    step = lane.center[-1] - lane.center[-2] if at_end else lane.center[1] - lane.center[0]
    return step / np.linalg.norm(step)


def make_connectors(lanes: list[Lane], junction: int, hand: int) -> list[Connector]:
    """Ways from every lane that enters a junction: straight on from any, turns from the lane on their side.

    A lane that would be without a way in or out gets the straightest one.
    """
    entering = [i for i, lane in enumerate(lanes) if lane.junction_to == junction]
    leaving = [k for k, lane in enumerate(lanes) if lane.junction_from == junction]
    turns = {(i, k): _turn(lanes[i], lanes[k]) for i in entering for k in leaving if lanes[i].road != lanes[k].road}
    ways = []
    for i, k in turns:
        outermost = max(lanes[other].rank for other in entering if _same_arm(lanes[other], lanes[i]))
        if _may_take(lanes[i], lanes[k], turns[i, k] * hand, outermost):
            ways.append((i, k))
    for side, group in ((0, entering), (1, leaving)):
        for lane in group:
            if all(way[side] != lane for way in ways):
                ways.append(min((way for way in turns if way[side] == lane), key=lambda way: abs(turns[way])))
    return [_connector(lanes, i, k) for i, k in ways]


def _same_arm(a: Lane, b: Lane) -> bool:
    return a.road == b.road and a.direction == b.direction


def _turn(lane: Lane, target: Lane) -> float:
    """Change of heading in radians, positive to the left."""
    a, b = _heading(lane, True), _heading(target, False)
    return float(np.arctan2(a[0] * b[1] - a[1] * b[0], a @ b))


def _may_take(lane: Lane, target: Lane, turn: float, outermost: int) -> bool:
    """`turn` is positive towards the oncoming side (left in right-hand traffic)."""
    if abs(turn) < 0.6:
        return target.rank == lane.rank or (lane.rank == outermost and target.rank == lane.rank + 1)
    if turn > 0:
        return lane.rank == 0 and target.rank == 0
    return lane.rank == outermost and target.rank == 0


def _connector(lanes: list[Lane], i: int, k: int) -> Connector:
    start, end = lanes[i], lanes[k]
    center = cubic_connection(start.center[-1], _heading(start, True), end.center[0], _heading(end, False))
    step = np.gradient(center, axis=0)
    normal = np.stack([-step[:, 1], step[:, 0]], axis=1) / np.linalg.norm(step, axis=1, keepdims=True)
    outline = np.concatenate([(center + 1.5 * normal)[::4], (center - 1.5 * normal)[::-4]])
    return Connector(rounded(outline), [], i, k, rounded(center))
