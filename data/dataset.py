"""Samples for training and evaluation, from a GT cache and the JPEGs it names."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from data.geometry import invert_rigid, lidar2img_matrix
from data.gt_cache import GTCache
from data.noisy_lines import noisy_copies
from data.pixels import adjust_pixels, load_pixels
from data.polylines import is_closed, target_points
from data.records import SampleRecord
from data.scene_context import context_of
from data.transforms import (
    Augmentation,
    AugmentConfig,
    crop_window,
    draw_augmentation,
    frame_transform,
    pixel_transform,
    transform_lines,
)
from utils.errors import UserError
from utils.frame import CAMERAS, MIRRORED_CAMERAS, denormalize_pts, normalize_pts

# V cameras, G ground-truth instances, P points


class MapDetectionDataset(Dataset):
    """One item a key frame; see __getitem__.

    cache: which samples; dataroot: where their images lie; image_size: (H, W) of the resized images;
    crop_top: share of the image height cut off the top before resizing (sky, at small sizes); num_points: P;
    augment: None for evaluation; seed: with epoch and index it decides all randomness; pc_range: the cache's own
    unless given, as it must be where records without ground truth take the place of a cache; with_context: add the
    words of data/scene_context.py to each item.
    """

    def __init__(
        self,
        cache: GTCache | Sequence[SampleRecord],
        dataroot: str | Path,
        image_size: tuple[int, int],
        crop_top: float = 0.0,
        num_points: int = 20,
        augment: AugmentConfig | None = None,
        seed: int = 0,
        pc_range: Sequence[float] | None = None,
        with_context: bool = False,
    ):
        if not 0.0 <= crop_top < 1.0:
            raise ValueError(f"crop_top: {crop_top}, expected 0 <= crop_top < 1; it is a share of the height")
        if not os.path.isdir(dataroot):
            raise UserError(f"{dataroot}: no such folder; give the nuScenes folder with --dataroot")
        self.cache = cache
        self.dataroot = os.fspath(dataroot)
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.crop_top = crop_top
        self.num_points = num_points
        self.augment = augment
        self.seed = seed
        self.with_context = with_context
        self.pc_range = tuple(cache.meta["pc_range"] if pc_range is None else pc_range)
        # In shared memory, so that workers that outlive an epoch see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.cache)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's randomness; call it before the epoch's first batch is asked for."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> dict:
        """Returns a dict:

        images uint8 [V, 3, H, W]; lidar2img float32 [V, 4, 4], LiDAR metres to pixels of these images (times
        depth); ground_z float32 [], height of the road plane; camera_ids int64 [V], index into CAMERAS;
        labels int64 [G]; pts float32 [G, P, 2] in [0, 1] of pc_range; closed bool [G], True = a ring;
        sample_token; index; context, words for the prompt, when asked for; noisy_pts float32 [K, G, P, 2] in [0, 1],
        K noisy copies of pts, when the augmentation asks for them. Raises UserError for an image that is
        missing, broken or of another size.
        """
        record = self.cache[index]
        augmentation = self.augmentation_of(index)
        images, lidar2img = self.load_cameras(record, augmentation)
        labels, pts_m = transform_lines(record.labels, record.pts_m, augmentation, self.pc_range)
        pts = target_points(pts_m, self.num_points)  # [G, P, 2]
        # Ground truth in StreamMapNet's style reaches up to 2 m beyond the range; as targets lines end at its edge.
        pts = np.clip(normalize_pts(pts, self.pc_range), 0.0, 1.0)
        item = {
            "images": images,
            "lidar2img": torch.from_numpy(lidar2img.astype(np.float32)),
            "ground_z": torch.tensor(record.ground_z, dtype=torch.float32),
            "camera_ids": torch.arange(len(CAMERAS)),
            "labels": torch.from_numpy(labels),
            "pts": torch.from_numpy(pts.astype(np.float32)),
            "closed": torch.tensor([is_closed(line) for line in pts_m], dtype=torch.bool),
            "sample_token": record.sample_token,
            "index": index,
        }
        if self.with_context:
            item["context"] = context_of(record, augmentation.mirror)
        if self.augment and self.augment.noisy_copies:
            noisy = noisy_copies(denormalize_pts(pts, self.pc_range), self.augment.noisy_copies, self._rng(index, 1))
            noisy = np.clip(normalize_pts(noisy, self.pc_range), 0.0, 1.0)
            item["noisy_pts"] = torch.from_numpy(noisy.astype(np.float32))
        return item

    def augmentation_of(self, index: int) -> Augmentation:
        """What happens to this sample in the present epoch, a function of (seed, epoch, index)."""
        if self.augment is None:
            return Augmentation()
        return draw_augmentation(self.augment, self._rng(index))

    def _rng(self, index: int, *purpose: int) -> np.random.Generator:
        """The generator of one sample in the present epoch, and for each purpose another."""
        return np.random.default_rng((self.seed, int(self._epoch), index, *purpose))

    def load_cameras(self, record: SampleRecord, augmentation: Augmentation) -> tuple[torch.Tensor, np.ndarray]:
        """Images uint8 [V, 3, H, W] and projections float64 [V, 4, 4] of the augmented sample."""
        images = torch.empty(len(CAMERAS), 3, *self.image_size, dtype=torch.uint8)
        source2img = lidar2img_matrix(record.camera_intrinsic, record.cam2lidar)
        source2img = source2img @ invert_rigid(frame_transform(augmentation))
        lidar2img = np.empty_like(source2img)
        for v, relative_path in enumerate(record.image_paths):
            source_size = tuple(record.image_sizes[v].tolist())
            window = crop_window(source_size, self.crop_top, *augmentation.windows[v])
            path = os.path.join(self.dataroot, relative_path)
            pixels, window = load_pixels(path, source_size, window, self.image_size, record.sample_token)
            pixels = adjust_pixels(
                pixels, augmentation.brightness, augmentation.contrast, augmentation.saturation
            )
            place = MIRRORED_CAMERAS[v] if augmentation.mirror else v
            images[place] = pixels.flip(-1) if augmentation.mirror else pixels
            lidar2img[place] = pixel_transform(window, self.image_size, augmentation.mirror) @ source2img[v]
        return images, lidar2img


def collate(samples: list[dict]) -> dict:
    """Stack samples into a batch of B; ground truth stays a list, because G differs.

    Returns images [B, V, 3, H, W], lidar2img [B, V, 4, 4], ground_z [B], camera_ids [B, V], targets: B dicts
    of labels, pts, closed and, if the samples have it, noisy_pts; sample_tokens, indices and, if the samples have it,
    context: lists of B.
    """
    batch = {
        key: torch.stack([sample[key] for sample in samples])
        for key in ("images", "lidar2img", "ground_z", "camera_ids")
    }
    of_lines = [key for key in ("labels", "pts", "closed", "noisy_pts") if key in samples[0]]
    batch["targets"] = [{key: sample[key] for key in of_lines} for sample in samples]
    batch["sample_tokens"] = [sample["sample_token"] for sample in samples]
    batch["indices"] = [sample["index"] for sample in samples]
    if "context" in samples[0]:
        batch["context"] = [sample["context"] for sample in samples]
    return batch
