"""Draw the files of one scene: six JPEGs and a LiDAR sweep a sample. One scene is one task of a worker."""

import math
from pathlib import Path

import cv2
import numpy as np

from data.geometry import pose_matrix
from data.synthetic.appearance import Appearance, make_appearance
from data.synthetic.boxes import Solid
from data.synthetic.camera import finish_image, render_view
from data.synthetic.elements import Town
from data.synthetic.ground import (
    GroundCanvas,
    GroundLevel,
    color_ground,
    draw_town,
    flatten_town,
    make_grain,
    pyramid,
)
from data.synthetic.lidar import make_sweep
from data.synthetic.plan import ScenePlan
from data.synthetic.rig import CAMERA_MOUNTS, LIDAR
from data.synthetic.seeding import make_rng
from data.synthetic.town import TOWN_SIZE
from data.synthetic.traffic import Agent

JPEG_QUALITY = 92
NEAR_GROUND = 45.0  # metres around the trajectory that are drawn at the finest resolution
FINE_RESOLUTION = {True: 0.035, False: 0.05}  # metres per pixel there; True: for images wider than WIDE
WIDE = 1000  # pixels
COARSER = 4  # how much coarser the whole town is drawn
IN_SIGHT = {"building": 150.0, "hedge": 50.0, "pole": 60.0}  # metres within which they are drawn
TREES_IN_SIGHT = 90.0
NOISE_MARGIN = 128  # pixels by which the noise field is larger than an image


def draw_scene(scene: ScenePlan, town: Town, image_size: tuple[int, int], seed: int, root: Path) -> list[np.ndarray]:
    """Write all files of a scene under root. Returns per sample [agents, 2]: LiDAR hits, hits if nothing hid them."""
    rng = make_rng(seed, "look", scene.name)
    appearance = make_appearance(rng, town.style.wear)
    levels = _ground_levels(rng, scene, town, appearance, image_size)
    noise = rng.standard_normal((image_size[1] + NOISE_MARGIN, image_size[0] + NOISE_MARGIN, 3), dtype=np.float32)
    gains = {channel: float(rng.normal(1.0, 0.03)) for channel in CAMERA_MOUNTS}
    counts = []
    for index in range(len(scene.sensor_times)):
        for channel in CAMERA_MOUNTS:
            pose, time = _sensor_pose(scene, index, channel)
            solids, _ = _solids_around(town, scene.agents, time, pose[:2, 3])
            trees = [t for t in town.trees if math.hypot(t.x - pose[0, 3], t.y - pose[1, 3]) < TREES_IN_SIGHT]
            intrinsic = scene.log.rig[channel].intrinsic
            view = render_view(pose, intrinsic, image_size, levels, solids, trees, appearance)
            offset = tuple(rng.integers(0, NOISE_MARGIN, 2).tolist())
            image = finish_image(view, appearance, noise, offset, gains[channel])
            _write_jpeg(root / scene.filename(index, channel), image)
        pose, time = _sensor_pose(scene, index, LIDAR)
        solids, owners = _solids_around(town, scene.agents, time, pose[:2, 3])
        points, hits, possible = make_sweep(rng, pose, solids, owners, len(scene.agents))
        points.tofile(root / scene.filename(index, LIDAR))
        counts.append(np.stack([hits, possible], axis=1))
    return counts


def _write_jpeg(path: Path, image: np.ndarray) -> None:
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    path.write_bytes(encoded.tobytes())


def _sensor_pose(scene: ScenePlan, index: int, channel: str) -> tuple[np.ndarray, float]:
    """Sensor to global [4, 4] at the sensor's own time, and that time on the trajectories' clock."""
    time = scene.motion_time(scene.sensor_times[index][channel])
    return pose_matrix(*scene.ego.pose_at(time)) @ scene.log.rig[channel].sensor2ego, time


def _ground_levels(
    rng: np.random.Generator, scene: ScenePlan, town: Town, appearance: Appearance, image_size: tuple[int, int]
) -> tuple[list[GroundLevel], list[GroundLevel]]:
    """(coarse pyramid of the town, fine pyramid around the trajectory)."""
    grain = make_grain(rng)
    xy = scene.ego.trajectory.xy
    near = (*(xy.min(axis=0) - NEAR_GROUND), *(xy.max(axis=0) + NEAR_GROUND))
    center = np.array(town.drivable.envelope.centroid.coords[0])
    whole = (*(center - TOWN_SIZE / 2), *(center + TOWN_SIZE / 2))
    resolution = FINE_RESOLUTION[image_size[0] > WIDE]
    flat = flatten_town(town, appearance.shadow_per_metre)
    levels = []
    for bounds, scale, num_levels in ((whole, COARSER, 5), (near, 1, 3)):
        canvas = GroundCanvas(bounds, resolution * scale)
        draw_town(canvas, flat)
        levels.append(pyramid(color_ground(canvas, grain, appearance.ground_colors), num_levels))
    return levels[0], levels[1]


def _solids_around(town: Town, agents: list[Agent], time: float, xy: np.ndarray) -> tuple[list[Solid], list[int]]:
    """Boxes near a point and, for each, the agent it belongs to (-1: none)."""
    solids = [
        Solid(box.kind, box.x, box.y, 0.0, box.yaw, box.size, box.color, box.look)
        for box in town.boxes
        if math.hypot(box.x - xy[0], box.y - xy[1]) < IN_SIGHT[box.kind]
    ]
    owners = [-1] * len(solids)
    for index, agent in enumerate(agents):
        parts = agent_solids(agent, time)
        solids += parts
        owners += [index] * len(parts)
    return solids, owners


def agent_solids(agent: Agent, time: float) -> list[Solid]:
    """A car as a body with a cabin on it, a truck or bus as a high body; within the annotated box."""
    x, y, yaw = agent.trajectory.at(time)
    width, length, height = agent.size
    forward = np.array([np.cos(yaw), np.sin(yaw)])
    dark = Solid("wheels", x, y, 0.0, yaw, (length * 0.8, width * 0.92, 0.35), (25, 25, 27))
    if agent.category == "vehicle.car":
        body_top = height * 0.6
        cabin_at = np.array([x, y]) - forward * length * 0.06
        return [
            dark,
            Solid("body", x, y, 0.25, yaw, (length, width, body_top - 0.25), agent.color),
            Solid("cabin", *cabin_at, body_top, yaw, (length * 0.52, width * 0.88, height - body_top), agent.color),
        ]
    nose = np.array([x, y]) + forward * (length * 0.5 - 0.6)
    rest = np.array([x, y]) - forward * 0.6
    return [
        dark,
        Solid("body", *rest, 0.35, yaw, (length - 1.2, width, height - 0.35), agent.color),
        Solid("cabin", *nose, 0.35, yaw, (1.2, width * 0.96, height * 0.75 - 0.35), agent.color),
    ]
