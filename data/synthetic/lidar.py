"""A LIDAR_TOP sweep: rays of 32 beams against the ground and the boxes, and what it says about visibility."""

import numpy as np

from data.geometry import invert_rigid
from data.synthetic.boxes import Solid

BEAM_ANGLES = np.deg2rad(np.linspace(-30.67, 10.67, 32))
NUM_AZIMUTHS = 180
MAX_RANGE = 70.0  # metres
RANGE_NOISE = 0.02  # metres


def make_sweep(
    rng: np.random.Generator, lidar2global: np.ndarray, solids: list[Solid], owners: list[int], num_owners: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points, and how many hit each owner.

    Args:
        lidar2global: [4, 4].
        owners: for each solid which agent it belongs to, -1 for none.

    Returns:
        points float32 [N, 5] (x, y, z in the LiDAR frame, intensity, ring); hits [num_owners] int; and the hits
        there would be without anything in between, [num_owners] int.
    """
    azimuth = np.arange(NUM_AZIMUTHS) * (2 * np.pi / NUM_AZIMUTHS)
    elevation, azimuth = (grid.ravel() for grid in np.meshgrid(BEAM_ANGLES, azimuth, indexing="ij"))
    local = np.stack(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], axis=1
    )
    rays = local @ lidar2global[:3, :3].T
    origin = lidar2global[:3, 3]
    reach = np.where(rays[:, 2] < -1e-3, -origin[2] / np.minimum(rays[:, 2], -1e-3), np.inf)
    hit_owner = np.full(len(rays), -1)
    possible = np.zeros((num_owners, len(rays)), bool)
    for solid, owner in zip(solids, owners, strict=True):
        near = _rays_towards(rays, origin, solid)
        if len(near) == 0:
            continue
        distance = _ray_box(rays[near], origin, solid)
        if owner >= 0:
            possible[owner, near] |= distance < MAX_RANGE
        first = near[distance < reach[near]]
        reach[first] = distance[distance < reach[near]]
        hit_owner[first] = owner
    seen = (reach < MAX_RANGE) & (reach > 1.0)
    noisy = reach[seen] + rng.normal(0.0, RANGE_NOISE, seen.sum())
    intensity = rng.integers(2, 60, seen.sum())
    ring = np.repeat(np.arange(len(BEAM_ANGLES)), NUM_AZIMUTHS)[seen]
    points = np.concatenate([local[seen] * noisy[:, None], intensity[:, None], ring[:, None]], axis=1)
    hits = np.bincount(hit_owner[seen & (hit_owner >= 0)], minlength=num_owners)
    return points.astype(np.float32), hits, possible.sum(axis=1)


def _rays_towards(rays: np.ndarray, origin: np.ndarray, solid: Solid) -> np.ndarray:
    """Indices of the rays [N, 3] that point at the ball around a box within range."""
    size = np.asarray(solid.size)
    to_box = np.array([solid.x, solid.y, solid.z + size[2] / 2]) - origin
    distance, radius = np.linalg.norm(to_box), np.linalg.norm(size) / 2
    if distance - radius > MAX_RANGE:
        return np.zeros(0, int)
    if distance <= radius:
        return np.arange(len(rays))
    return np.flatnonzero(rays @ to_box > distance * np.cos(np.arcsin(radius / distance)))


def _ray_box(rays: np.ndarray, origin: np.ndarray, solid: Solid) -> np.ndarray:
    """Distance [N] at which rays [N, 3] enter a box, inf where they miss."""
    to_box = np.eye(4)
    cos, sin = np.cos(solid.yaw), np.sin(solid.yaw)
    to_box[:2, :2] = [[cos, -sin], [sin, cos]]
    to_box[:3, 3] = [solid.x, solid.y, solid.z + solid.size[2] / 2]
    to_box = invert_rigid(to_box)
    start = to_box[:3, :3] @ origin + to_box[:3, 3]
    direction = rays @ to_box[:3, :3].T
    direction = np.where(np.abs(direction) < 1e-9, 1e-9, direction)
    half = np.asarray(solid.size) / 2
    first = (-half - start) / direction
    second = (half - start) / direction
    enter = np.minimum(first, second).max(axis=1)
    leave = np.maximum(first, second).min(axis=1)
    return np.where((enter < leave) & (enter > 0), enter, np.inf)
