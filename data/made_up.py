"""Made-up batches: a level six-camera rig, noise images and random polylines, enough to run and time the network."""

import numpy as np
import torch

from data.geometry import lidar2img_matrix
from utils.frame import CAMERAS

GROUND_Z = -1.84
USUAL_COUNT = 9  # ground-truth instances of a sample, about nuScenes' mean
CAMERA_YAWS_DEG = (0, -55, 55, 180, 110, -110)  # counter-clockwise from straight ahead, in the order of CAMERAS


def camera_matrices(image_size: tuple[int, int]) -> torch.Tensor:
    """lidar2img [6, 4, 4] of level cameras at the origin, looking at CAMERA_YAWS_DEG."""
    height, width = image_size
    focal = 0.8 * width
    intrinsic = np.array([[focal, 0, width / 2], [0, focal, height * 0.3], [0, 0, 1]])
    matrices = []
    for yaw in np.deg2rad(CAMERA_YAWS_DEG):
        forward = np.array([-np.sin(yaw), np.cos(yaw), 0.0])
        down = np.array([0.0, 0.0, -1.0])
        cam2lidar = np.eye(4)
        cam2lidar[:3, :3] = np.stack([np.cross(down, forward), down, forward], axis=1)
        matrices.append(lidar2img_matrix(intrinsic, cam2lidar))
    return torch.tensor(np.stack(matrices), dtype=torch.float32)


def random_target(generator: torch.Generator, count: int, num_points: int) -> dict[str, torch.Tensor]:
    """Labels [G], points [G, P, 2] in [0, 1] and ring flags [G]; about a third are rings."""
    pts = torch.rand(count, num_points, 2, generator=generator)
    closed = torch.rand(count, generator=generator) < 0.33
    pts[closed, -1] = pts[closed, 0]
    return {"labels": torch.randint(0, 3, (count,), generator=generator), "pts": pts, "closed": closed}


def random_batch(
    image_size: tuple[int, int], num_points: int, counts: tuple[int, ...], seed: int = 0, noisy_copies: int = 0
) -> dict:
    """A batch as `collate` makes it, with the given numbers of ground-truth instances, one for each sample.

    noisy_copies: of every instance; they are as random as the instances.
    """
    generator = torch.Generator().manual_seed(seed)
    batch = len(counts)
    shape = (batch, len(CAMERAS), 3, *image_size)
    targets = [random_target(generator, count, num_points) for count in counts]
    if noisy_copies:
        for target in targets:
            target["noisy_pts"] = torch.rand(noisy_copies, *target["pts"].shape, generator=generator)
    return {
        "images": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        "lidar2img": camera_matrices(image_size).expand(batch, -1, -1, -1).clone(),
        "ground_z": torch.full((batch,), GROUND_Z),
        "camera_ids": torch.arange(len(CAMERAS)).expand(batch, -1),
        "targets": targets,
        "sample_tokens": [f"sample-{i}" for i in range(batch)],
        "indices": list(range(batch)),
    }
