import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from data.dataset import MapDetectionDataset, collate
from data.geometry import lidar2img_matrix
from data.gt_cache import GTCache, write_gt_cache
from data.noisy_lines import SHIFT_M
from data.transforms import Augmentation, AugmentConfig
from tests.made_records import GROUND_Z, META, PAINT, make_painted_cache, make_record
from tests.pinhole import project_to_image
from utils.errors import UserError
from utils.frame import CAMERAS, CLASSES, MIRRORED_CAMERAS, denormalize_pts

ROOT = Path(__file__).resolve().parents[1]
SIZE = (180, 320)
AUGMENTS = {
    "none": None,
    "mirror": AugmentConfig(mirror_probability=1.0),
    "rotation": AugmentConfig(rotation_deg=8.0),
    "zoom": AugmentConfig(zoom=0.3),
    "colours": AugmentConfig(brightness=0.3, contrast=0.3, saturation=0.3),
    "all": AugmentConfig(1.0, rotation_deg=8.0, zoom=0.3, brightness=0.3, contrast=0.3, saturation=0.3),
}


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("painted")
    return folder, make_painted_cache(folder)


def share_on_paint(item, shift_m=0.0):
    """Share of the target points seen within 15 m that have their class's colour, and how many are seen.

    Uses only what the model gets: pts, labels, lidar2img, ground_z and images.
    """
    pc_range = META["pc_range"]
    pts_m = denormalize_pts(item["pts"].numpy().astype(np.float64), pc_range) + shift_m
    height, width = item["images"].shape[2:]
    hits = []
    for pts, label in zip(pts_m, item["labels"].tolist(), strict=True):
        ground = np.column_stack([pts, np.full(len(pts), float(item["ground_z"]))])
        for image, lidar2img in zip(item["images"].numpy(), item["lidar2img"].numpy(), strict=True):
            pixels, depth = project_to_image(ground, lidar2img.astype(np.float64))
            u, v = np.rint(pixels).astype(int).T
            seen = (depth > 1) & (depth < 15) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
            colours = image[:, v[seen], u[seen]].astype(int).T  # [n, 3]
            others = np.delete(colours, np.argmax(PAINT[label]), axis=1)
            hits += (colours[:, np.argmax(PAINT[label])] > others.max(axis=1) + 40).tolist()
    return np.mean(hits), len(hits)


@pytest.mark.parametrize("name", AUGMENTS)
@pytest.mark.parametrize("crop_top", [0.0, 0.3])
def test_targets_lie_on_their_paint_after_every_augmentation(painted, name, crop_top):
    folder, cache = painted
    dataset = MapDetectionDataset(cache, folder, SIZE, crop_top, 100, AUGMENTS[name], seed=5)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        on_paint, count = share_on_paint(dataset[0])
        assert count > 150
        assert on_paint > 0.97
        assert share_on_paint(dataset[0], shift_m=0.5)[0] < 0.25


def test_an_augmented_sample_differs_from_the_plain_one(painted):
    folder, cache = painted
    plain = MapDetectionDataset(cache, folder, SIZE)[0]
    for name, augment in AUGMENTS.items():
        item = MapDetectionDataset(cache, folder, SIZE, augment=augment, seed=5)[0]
        same = torch.equal(item["images"], plain["images"])
        assert same == (name in ("none", "rotation")), name
        moved = not torch.allclose(item["lidar2img"], plain["lidar2img"])
        assert moved == (name in ("mirror", "rotation", "zoom", "all")), name


def test_mirror_exchanges_left_and_right_cameras(painted):
    folder, cache = painted
    plain = MapDetectionDataset(cache, folder, SIZE)[0]
    item = MapDetectionDataset(cache, folder, SIZE, augment=AUGMENTS["mirror"])[0]
    torch.testing.assert_close(item["images"], plain["images"][list(MIRRORED_CAMERAS)].flip(-1))
    torch.testing.assert_close(item["camera_ids"], plain["camera_ids"])
    # CAM_FRONT_LEFT still looks to the left: a point ahead on the left has positive depth in it.
    point = torch.tensor([-10.0, 10.0, 0.0, 1.0])
    left = item["lidar2img"][CAMERAS.index("CAM_FRONT_LEFT")] @ point
    right = item["lidar2img"][CAMERAS.index("CAM_FRONT_RIGHT")] @ point
    assert left[2] > 5 and right[2] < left[2] / 2


def test_lidar2img_follows_crop_and_resize_exactly(painted):
    folder, cache = painted
    record = cache[0]
    item = MapDetectionDataset(cache, folder, SIZE, crop_top=0.2)[0]
    point = np.array([[1.0, 9.0, GROUND_Z]])
    source = lidar2img_matrix(record.camera_intrinsic, record.cam2lidar)[0]
    (u, v), = project_to_image(point, source)[0]
    width, height = record.image_sizes[0]
    expected = [(u + 0.5) * 320 / width - 0.5, (v + 0.5 - 0.2 * height) * 180 / (0.8 * height) - 0.5]
    found = project_to_image(point, item["lidar2img"][0].numpy().astype(np.float64))[0][0]
    np.testing.assert_allclose(found, expected, atol=1e-2)


def test_item_has_the_agreed_shapes_and_types(painted):
    folder, cache = painted
    item = MapDetectionDataset(cache, folder, SIZE, num_points=20)[0]
    assert item["images"].dtype == torch.uint8 and item["images"].is_contiguous()
    assert item["images"].shape == (6, 3, *SIZE)
    assert item["lidar2img"].shape == (6, 4, 4) and item["lidar2img"].dtype == torch.float32
    assert item["ground_z"].shape == () and item["ground_z"].dtype == torch.float32
    assert item["pts"].shape == (6, 20, 2) and item["pts"].dtype == torch.float32
    assert item["labels"].dtype == torch.int64 and item["camera_ids"].tolist() == list(range(6))
    assert item["closed"].tolist() == [False, False, False, True, False, False]
    assert item["sample_token"] == cache.sample_tokens[0] and item["index"] == 0
    torch.testing.assert_close(item["pts"][3, 0], item["pts"][3, -1])  # a ring ends where it starts


def make_dataset(folder, records, **options):
    write_gt_cache(folder / "c.safetensors", records, META)
    return MapDetectionDataset(GTCache.open(folder / "c.safetensors"), folder, SIZE, **options)


def test_empty_ground_truth_and_what_lies_beyond_the_range(painted):
    folder, _ = painted
    beyond = np.array([[-15.2, 0], [15.2, 0]], np.float32)  # a crossing with MapTR's margin
    records = [make_record(0, np.zeros(0, np.int64), [], 800), make_record(0, np.array([1]), [beyond], 800)]
    dataset = make_dataset(folder, records, num_points=5)
    batch = collate([dataset[0], dataset[1]])
    assert batch["targets"][0]["pts"].shape == (0, 5, 2)
    assert batch["targets"][0]["labels"].shape == batch["targets"][0]["closed"].shape == (0,)
    pts = batch["targets"][1]["pts"][0]
    assert pts.min() == 0.0 and pts.max() == 1.0
    everything = make_dataset(folder, records, augment=AUGMENTS["all"])[0]
    assert everything["pts"].shape == (0, 20, 2)


def test_noisy_copies_lie_around_the_targets_of_the_augmented_sample(painted):
    folder, cache = painted
    item = MapDetectionDataset(cache, folder, SIZE, augment=AugmentConfig(1.0, noisy_copies=16))[0]
    lines, copies = (denormalize_pts(item[name], META["pc_range"]) for name in ("pts", "noisy_pts"))  # metres
    assert copies.shape == (16, *lines.shape)
    inside = (lines[..., 0].abs() < 10).all(-1)  # copies end at the range: those of these lines not to the side
    away = (copies.mean(2) - lines.mean(1))[:, inside, 0]  # [16, G'], centres to the right
    assert inside.sum() >= 4
    assert away.mean(0).abs().max() < SHIFT_M and 0.7 * SHIFT_M < away.std() < 1.4 * SHIFT_M


def test_a_ring_that_a_turn_cuts_open_is_an_open_line(painted):
    folder, _ = painted
    ring = np.array([[5, 27], [13, 27], [13, 29], [5, 29], [5, 27]], np.float32)
    dataset = make_dataset(folder, [make_record(0, np.array([1]), [ring], 800)])
    assert dataset[0]["closed"].tolist() == [True]
    dataset.augmentation_of = lambda index: Augmentation(rotation_rad=math.radians(10.0))
    turned = dataset[0]
    assert turned["closed"].numel() and not turned["closed"].any()
    assert not torch.equal(turned["pts"][:, 0], turned["pts"][:, -1])


def test_collate_stacks_what_has_one_shape(painted):
    folder, cache = painted
    dataset = MapDetectionDataset(cache, folder, SIZE)
    batch = collate([dataset[0], dataset[0]])
    assert batch["images"].shape == (2, 6, 3, *SIZE)
    assert batch["lidar2img"].shape == (2, 6, 4, 4)
    assert batch["ground_z"].shape == (2,) and batch["camera_ids"].shape == (2, 6)
    assert [set(target) for target in batch["targets"]] == [{"labels", "pts", "closed"}] * 2
    assert batch["sample_tokens"] == [dataset[0]["sample_token"]] * 2 and batch["indices"] == [0, 0]


def test_randomness_is_a_function_of_seed_epoch_and_index(painted):
    folder, _ = painted
    records = [make_record(0, np.array([0]), [np.array([[0, 0], [0, 9]], np.float32)], 800)] * 3
    dataset = make_dataset(folder, records, augment=AUGMENTS["all"], seed=1)
    first = [dataset[i]["lidar2img"] for i in range(3)]
    assert not torch.equal(first[0], first[1])
    torch.testing.assert_close(dataset[1]["lidar2img"], first[1], rtol=0, atol=0)
    dataset.set_epoch(1)
    assert not torch.equal(dataset[0]["lidar2img"], first[0])
    other_seed = make_dataset(folder, records, augment=AUGMENTS["all"], seed=2)
    assert not torch.equal(other_seed[0]["lidar2img"], first[0])


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_lasting_workers_give_what_one_process_gives_in_every_epoch(painted, context):
    folder, cache = painted
    dataset = MapDetectionDataset(cache, folder, SIZE, augment=AUGMENTS["all"])
    loader = DataLoader(
        dataset, collate_fn=collate, num_workers=1, persistent_workers=True, multiprocessing_context=context
    )
    for epoch in range(2):
        dataset.set_epoch(epoch)
        (batch,) = loader
        torch.testing.assert_close(batch["lidar2img"][0], dataset[0]["lidar2img"], rtol=0, atol=0)
        assert torch.equal(batch["images"][0], dataset[0]["images"])


def test_bad_arguments_are_refused(painted):
    folder, cache = painted
    with pytest.raises(UserError, match="nowhere: no such folder; .*--dataroot"):
        MapDetectionDataset(cache, folder / "nowhere", SIZE)
    with pytest.raises(ValueError, match=r"crop_top: 1\.0, expected"):
        MapDetectionDataset(cache, folder, SIZE, crop_top=1.0)


def test_a_missing_image_names_path_and_sample(painted):
    folder, _ = painted
    dataset = make_dataset(folder, [make_record(77, np.zeros(0, np.int64), [], 800)])
    with pytest.raises(UserError, match=r"samples/CAM_FRONT/77\.jpg: no such image, sample sample000077"):
        dataset[0]


def test_training_from_a_cache_needs_neither_the_devkit_nor_shapely(painted):
    folder, _ = painted
    code = (
        "import sys\n"
        "from data.dataset import MapDetectionDataset\n"
        "from data.gt_cache import GTCache\n"
        f"cache = GTCache.open({str(folder / 'cache.safetensors')!r})\n"
        "cache.require(split='train')\n"
        f"MapDetectionDataset(cache, {str(folder)!r}, (60, 100))[0]\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'nuscenes', 'shapely', 'cv2'}))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "[]", done.stderr


def contrast_across(item, shift_m):
    """How much brighter dividers and boundaries are than the road half a metre beside them.

    Projects the targets, moved sideways by shift_m, with the item's own matrices; one value for every point
    that a camera sees 2 to 12 m away.
    """
    height, width = item["images"].shape[2:]
    pts_m = denormalize_pts(item["pts"].numpy().astype(np.float64), META["pc_range"])
    values = []
    for line in pts_m[item["labels"].numpy() != CLASSES.index("ped_crossing")]:
        along = np.diff(line, axis=0)
        across = np.stack([-along[:, 1], along[:, 0]], axis=1) / np.linalg.norm(along, axis=1, keepdims=True)
        for image, lidar2img in zip(item["images"].numpy(), item["lidar2img"].numpy(), strict=True):
            grey = image.mean(axis=0)
            seen, bright = np.ones(len(along), bool), []
            for offset in (0.0, 0.5, -0.5):
                ground = (line[1:] + line[:-1]) / 2 + (shift_m + offset) * across
                ground = np.column_stack([ground, np.full(len(ground), float(item["ground_z"]))])
                pixels, depth = project_to_image(ground, lidar2img.astype(np.float64))
                u, v = np.rint(pixels).astype(int).T
                seen &= (depth > 2) & (depth < 12) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
                bright.append(grey[v.clip(0, height - 1), u.clip(0, width - 1)])
            values.append((bright[0] - (bright[1] + bright[2]) / 2)[seen])
    return np.concatenate([*values, []])


@pytest.fixture(scope="module")
def synthetic_cache(synthetic_world, tmp_path_factory):
    path = tmp_path_factory.mktemp("gt") / "train.safetensors"
    arguments = ["--split", "train", "--dataroot", synthetic_world, "--output", path]
    subprocess.run([sys.executable, "tools/generate_gt_cache.py", *map(str, arguments)], cwd=ROOT, check=True)
    return GTCache.open(path)


@pytest.mark.parametrize("name", AUGMENTS)
def test_ground_truth_lies_on_the_rendered_paint(synthetic_world, synthetic_cache, name):
    """Through everything: town, tables, devkit, vectorisation, cache, images, augmentation.

    Other cars hide some lines and broken ones have gaps, so the share is far from one; 1 m beside there is
    nearly nothing.
    """
    dataset = MapDetectionDataset(
        synthetic_cache, synthetic_world, (225, 400), num_points=200, augment=AUGMENTS[name], seed=5
    )
    items = [dataset[index] for index in range(len(dataset))]
    share = {}
    for shift_m in (0.0, 1.0, -1.0):
        values = np.concatenate([contrast_across(item, shift_m) for item in items])
        assert len(values) > 500
        share[shift_m] = np.mean(values > 15)
    assert share[0.0] > 0.4, share
    assert max(share[1.0], share[-1.0]) < 0.1, share
