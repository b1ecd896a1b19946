"""How cars move: routes through the lanes, speed, poses at any time."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from data.synthetic.curves import arc_length, headings, resample_by_step
from data.synthetic.elements import Town
from data.synthetic.rig import quaternion_of

TIME_STEP = 0.05  # seconds between the stored poses of a trajectory
ROUTE_STEP = 0.5  # metres between the points of a route
LATERAL_ACCELERATION = 2.2  # m/s^2 in bends
BRAKING = 1.8  # m/s^2
SLOWEST = 0.4  # m/s: the floor of the speed profile; halts are added as pauses


@dataclass(frozen=True)
class Trajectory:
    """Positions xy [T, 2] and unwrapped yaw [T] at times [T] (seconds)."""

    times: np.ndarray
    xy: np.ndarray
    yaw: np.ndarray

    def at(self, time: float) -> tuple[float, float, float]:
        """(x, y, yaw), linear between the stored poses."""
        return (
            float(np.interp(time, self.times, self.xy[:, 0])),
            float(np.interp(time, self.times, self.xy[:, 1])),
            float(np.interp(time, self.times, self.yaw)),
        )


@dataclass(frozen=True)
class EgoMotion:
    """The trajectory of the recording car and its small roll and pitch: (amplitude rad, rate rad/s, phase)."""

    trajectory: Trajectory
    roll: tuple[float, float, float]
    pitch: tuple[float, float, float]

    def pose_at(self, time: float) -> tuple[np.ndarray, np.ndarray]:
        """Translation [3] with z = 0 and quaternion [4] of the vehicle in the global frame."""
        x, y, yaw = self.trajectory.at(time)
        roll, pitch = (a * np.sin(rate * time + phase) for a, rate, phase in (self.roll, self.pitch))
        rotation = Rotation.from_euler("ZYX", [yaw, pitch, roll])
        return np.array([x, y, 0.0]), quaternion_of(rotation)


def make_route(rng: np.random.Generator, town: Town, first_lane: int, offset: float, length: float) -> np.ndarray:
    """A path [N, 2] of at least `length` metres, from `offset` metres along a lane through random turns."""
    onward: dict[int, list] = {}
    for connector in town.connectors:
        onward.setdefault(connector.lane_from, []).append(connector)
    lane = first_lane
    pieces = [town.lanes[lane].center]
    while _length(pieces) < offset + length + 20.0:
        connector = onward[lane][int(rng.integers(len(onward[lane])))]
        lane = connector.lane_to
        pieces += [connector.center, town.lanes[lane].center]
    path = resample_by_step(np.concatenate(pieces), ROUTE_STEP)
    path = _smooth(path[int(offset / ROUTE_STEP) :], 9)
    return resample_by_step(path, ROUTE_STEP)


def _length(pieces: list[np.ndarray]) -> float:
    return float(arc_length(np.concatenate(pieces))[-1])


def _smooth(path: np.ndarray, width: int) -> np.ndarray:
    """Moving average over `width` points; the ends are cut off."""
    kernel = np.ones(width) / width
    return np.stack([np.convolve(path[:, axis], kernel, mode="valid") for axis in (0, 1)], axis=1)


def drive_route(
    rng: np.random.Generator, route: np.ndarray, cruise: float, duration: float, may_halt: bool
) -> Trajectory:
    """Drive a route at about `cruise` m/s for `duration` seconds, slower in bends, with a halt now and then."""
    arc = arc_length(route)
    heading = headings(route)
    curvature = np.abs(np.gradient(heading, arc))
    curvature = np.convolve(curvature, np.ones(5) / 5, mode="same")
    wave = 1.0 + 0.2 * np.sin(arc / rng.uniform(18, 40) + rng.uniform(0, 6.28))
    speed = np.minimum(cruise * wave, np.sqrt(LATERAL_ACCELERATION / np.maximum(curvature, 1e-4)))
    halt = int(rng.integers(len(arc) // 6, max(len(arc) // 2, len(arc) // 6 + 1))) if may_halt else -1
    if halt >= 0:
        speed[halt] = SLOWEST
    for order in (range(1, len(arc)), range(len(arc) - 2, -1, -1)):
        step = 1 if order[0] == 1 else -1
        for i in order:
            reachable = np.sqrt(speed[i - step] ** 2 + 2 * BRAKING * abs(arc[i] - arc[i - step]))
            speed[i] = min(speed[i], reachable)
    speed = np.maximum(speed, SLOWEST)
    pace = np.diff(arc) * 2.0 / (speed[1:] + speed[:-1])
    if halt >= 0:
        pace[halt] += rng.uniform(2.0, 5.0)
    clock = np.concatenate([[0.0], np.cumsum(pace)])
    times = np.arange(0.0, duration + TIME_STEP, TIME_STEP)
    at = np.interp(times, clock, arc)
    wobble = rng.uniform(0.0, 0.2) * np.sin(at / rng.uniform(15, 30) + rng.uniform(0, 6.28))
    yaw = np.interp(at, arc, heading)
    xy = np.stack([np.interp(at, arc, route[:, axis]) for axis in (0, 1)], axis=1)
    xy += wobble[:, None] * np.stack([-np.sin(yaw), np.cos(yaw)], axis=1)
    return Trajectory(times, xy, yaw)


def make_ego_motion(rng: np.random.Generator, town: Town, start: tuple[int, float], duration: float) -> EgoMotion:
    """The recording car, from (lane, metres along it), for `duration` seconds."""
    cruise = float(rng.uniform(4.0, 11.5))
    route = make_route(rng, town, start[0], start[1], cruise * 1.2 * duration + 60.0)
    trajectory = drive_route(rng, route, cruise, duration, may_halt=bool(rng.random() < 0.25))
    sway = [
        (np.deg2rad(rng.uniform(0.05, 0.45)), float(rng.uniform(0.8, 2.5)), float(rng.uniform(0, 6.28)))
        for _ in range(2)
    ]
    return EgoMotion(trajectory, *sway)
