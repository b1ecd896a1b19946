"""Other cars around the recording car: in the lanes, ahead of it, and parked."""

from dataclasses import dataclass

import numpy as np

from data.synthetic.curves import arc_length
from data.synthetic.drive import Trajectory, drive_route, make_route
from data.synthetic.elements import Town

# category, size (width, length, height) in metres, share
KINDS = (
    ("vehicle.car", (1.85, 4.5, 1.55), 0.72),
    ("vehicle.truck", (2.4, 6.9, 2.8), 0.12),
    ("vehicle.bus.rigid", (2.7, 11.0, 3.3), 0.06),
    ("vehicle.car", (2.0, 5.0, 1.9), 0.10),
)
COLORS = [(205, 205, 208), (235, 235, 235), (40, 40, 44), (120, 122, 126), (150, 30, 30), (40, 60, 120), (200, 170, 60)]
NEAR = 70.0  # metres from the recording car within which traffic is placed
CARS = (4, 22)  # of a scene, before those that would meet another are left out
WAY = 40.0  # metres; on a longer way there are more cars in proportion
CHECK_STEP = 10  # every how many stored poses two cars are checked for a collision
EGO_LENGTH = 5.0


@dataclass(frozen=True)
class Agent:
    """Another road user: nuScenes category, size (width, length, height), colour RGB, where it is when."""

    category: str
    size: tuple[float, float, float]
    color: tuple[int, int, int]
    trajectory: Trajectory


def make_traffic(rng: np.random.Generator, town: Town, ego: Trajectory, duration: float) -> list[Agent]:
    """Cars that meet neither each other nor the recording car."""
    count = int(rng.uniform(*CARS) * max(1.0, arc_length(ego.xy)[-1] / WAY))
    agents: list[Agent] = []
    middle = ego.xy[len(ego.xy) // 2]
    near = [
        i
        for i, lane in enumerate(town.lanes)
        if np.linalg.norm(lane.center[:, None] - ego.xy[None, ::20], axis=-1).min() < NEAR
        or np.linalg.norm(lane.center.mean(axis=0) - middle) < NEAR
    ]
    for _ in range(count):
        pick = int(rng.choice(len(KINDS), p=[share for _, _, share in KINDS]))
        category, size, _ = KINDS[pick]
        size = tuple(float(side * rng.uniform(0.94, 1.06)) for side in size)
        color = COLORS[int(rng.integers(len(COLORS)))]
        lane = near[int(rng.integers(len(near)))]
        offset = float(rng.uniform(0, np.linalg.norm(np.diff(town.lanes[lane].center, axis=0), axis=1).sum()))
        standing = rng.random() < 0.2
        cruise = float(rng.uniform(3.0, 11.0))
        route = make_route(rng, town, lane, offset, 1.2 * cruise * duration + 30.0)
        trajectory = drive_route(rng, route, cruise, duration, may_halt=False)
        if standing:
            trajectory = Trajectory(
                trajectory.times, np.repeat(trajectory.xy[:1], len(trajectory.times), axis=0),
                np.repeat(trajectory.yaw[:1], len(trajectory.times)),
            )  # fmt: skip
        agent = Agent(category, size, color, trajectory)
        if _keeps_clear(ego, EGO_LENGTH, agent) and all(
            _keeps_clear(other.trajectory, other.size[1], agent) for other in agents
        ):
            agents.append(agent)
    return agents


def _keeps_clear(other: Trajectory, length: float, agent: Agent) -> bool:
    """Whether two cars stay apart: neither comes into the other's box grown by a margin."""
    delta = agent.trajectory.xy[::CHECK_STEP] - other.xy[::CHECK_STEP]
    yaw = other.yaw[::CHECK_STEP]
    along = np.abs(delta[:, 0] * np.cos(yaw) + delta[:, 1] * np.sin(yaw))
    across = np.abs(-delta[:, 0] * np.sin(yaw) + delta[:, 1] * np.cos(yaw))
    turned = np.abs(np.sin(agent.trajectory.yaw[::CHECK_STEP] - yaw))
    reach_along = (length + agent.size[1]) / 2 + 2.0
    reach_across = 2.5 + turned * agent.size[1] / 2
    return not bool(np.any((along < reach_along) & (across < reach_across)))
