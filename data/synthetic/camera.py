"""One camera image: sky, ground by ray casting onto z = 0, boxes, noise."""

import math

import cv2
import numpy as np

from data.geometry import invert_rigid
from data.synthetic.appearance import SKY_HIGH, SKY_LOW, Appearance
from data.synthetic.boxes import Solid, View, apply_air, clip_near, draw_crown, draw_solid
from data.synthetic.elements import Tree, oriented_rectangle
from data.synthetic.ground import GRAINS, GRASS, GroundLevel

ROW_SAMPLES = 4  # rays per pixel height, against aliasing far away
FAR = 4000.0  # metres: depth of the sky
SMALLEST_ON_SCREEN = 1.5  # pixels: smaller boxes are left out
SHADOW_UNDER_CAR = 0.45
STRETCH = 2.0  # how much longer along the view than across it a pixel of the chosen ground level may be


def render_view(
    camera2global: np.ndarray,
    intrinsic: np.ndarray,
    image_size: tuple[int, int],
    levels: tuple[list[GroundLevel], list[GroundLevel]],
    solids: list[Solid],
    trees: list[Tree],
    appearance: Appearance,
) -> View:
    """Draw one image of (width, height) pixels; levels = (coarse pyramid, fine pyramid) of the ground."""
    width, height = image_size
    view = View(
        camera2global,
        invert_rigid(camera2global),
        intrinsic,
        camera2global[:3, :3] @ np.linalg.inv(intrinsic),
        np.zeros((height, width, 3), np.float32),
        np.full((height, width), FAR, np.float32),
    )
    _draw_sky(view, appearance)
    _draw_ground(view, levels, appearance)
    _draw_car_shadows(view, solids)
    # the nearest first, so that what they hide is found hidden early
    for solid in sorted(solids, key=lambda s: math.hypot(s.x - view.position[0], s.y - view.position[1])):
        if _is_in_sight(view, solid.x, solid.y, _radius(solid), solid.size[2]):
            draw_solid(view, solid, appearance)
    for tree in trees:
        if _is_in_sight(view, tree.x, tree.y, tree.radius, tree.height):
            trunk = Solid("pole", tree.x, tree.y, 0.0, 0.0, (0.3, 0.3, tree.height), (84, 70, 56))
            draw_solid(view, trunk, appearance)
            center = np.array([tree.x, tree.y, tree.height])
            draw_crown(view, center, tree.radius, np.asarray(tree.color, np.float32), appearance)
    return view


def _draw_sky(view: View, appearance: Appearance) -> None:
    height, width = view.depth.shape
    rows, columns = appearance.sky.shape[:2]
    rays = view.rays
    step = 4  # the sky is smooth: look it up on a coarse grid of pixels
    u = np.arange(0, width + 2 * step, step, dtype=np.float64)[None]
    v = np.arange(0, height + 2 * step, step, dtype=np.float64)[:, None]
    x, y, z = (rays[i, 0] * u + rays[i, 1] * v + rays[i, 2] for i in range(3))
    elevation = np.rad2deg(np.arctan2(z, np.hypot(x, y)))
    azimuth = np.arctan2(y, x)
    middle = azimuth[azimuth.shape[0] // 2, azimuth.shape[1] // 2]
    azimuth = middle + (azimuth - middle + np.pi) % (2 * np.pi) - np.pi  # no jump within the image
    column = azimuth / (2 * np.pi) * columns
    row = (SKY_HIGH - elevation) / (SKY_HIGH - SKY_LOW) * (rows - 1)
    maps = []
    for grid in (column, row):
        fine = cv2.resize(grid.astype(np.float32), None, fx=step, fy=step, interpolation=cv2.INTER_LINEAR)
        maps.append(fine[step // 2 : step // 2 + height, step // 2 : step // 2 + width])
    wrapped = cv2.copyMakeBorder(appearance.sky, 0, 0, columns, columns, cv2.BORDER_WRAP)
    sky = cv2.remap(
        wrapped, maps[0] + columns, np.clip(maps[1], 0, rows - 1), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    view.image[:] = sky


def _draw_ground(view: View, levels: tuple[list[GroundLevel], list[GroundLevel]], appearance: Appearance) -> None:
    height, width = view.depth.shape
    rays = view.rays
    u = np.arange(width, dtype=np.float32)[None]
    v = np.arange(height, dtype=np.float32)[:, None]
    down = -(rays[2, 0].astype(np.float32) * u + np.float32(rays[2, 1]) * v + np.float32(rays[2, 2]))
    camera_height = float(view.position[2])
    is_ground = down > camera_height / FAR
    if not is_ground.any():
        return
    top = int(np.argmax(is_ground.any(axis=1)))
    depth = np.float32(camera_height) / np.maximum(down, np.float32(1e-6))
    # (u, v, 1) to global (x, y, 1) on the plane z = 0: position + depth * ray
    to_global = np.stack([
        rays[0] - rays[2] * view.position[0] / camera_height,
        rays[1] - rays[2] * view.position[1] / camera_height,
        -rays[2] / camera_height,
    ])  # fmt: skip
    ground = np.empty(((height - top) * ROW_SAMPLES, width, 3), np.uint8)
    ground[:] = appearance.ground_colors[GRASS * GRAINS + (GRAINS - 1) // 2]
    middle = np.median(depth[top:], axis=1)
    along = middle**2 / (view.intrinsic[1, 1] * camera_height * ROW_SAMPLES * STRETCH)
    footprint = np.maximum(along, middle / view.intrinsic[0, 0])  # metres, one per image row
    _sample_levels(ground, to_global, top, footprint, levels)
    color = cv2.resize(ground, (width, height - top), interpolation=cv2.INTER_AREA).astype(np.float32)
    shown = apply_air(color, depth[top:], appearance)
    np.copyto(view.image[top:], shown, where=is_ground[top:, :, None])
    np.copyto(view.depth[top:], depth[top:], where=is_ground[top:])


def _sample_levels(
    ground: np.ndarray,
    to_global: np.ndarray,
    top: int,
    footprint: np.ndarray,
    levels: tuple[list[GroundLevel], list[GroundLevel]],
) -> None:
    """Fill ground [rows * ROW_SAMPLES, W, 3]: each band of rows from the level that suits its footprint [rows].

    The coarse pyramid covers the whole town, the fine one lies on top of it where there is one.
    """
    coarse, fine = levels
    wanted = np.clip(np.round(np.log2(footprint / fine[0].resolution)), 0, None).astype(int)
    finest_coarse = int(round(np.log2(coarse[0].resolution / fine[0].resolution)))
    first = 0
    while first < len(wanted):
        last = first
        while last + 1 < len(wanted) and wanted[last + 1] == wanted[first]:
            last += 1
        level = int(wanted[first])
        band = ground[first * ROW_SAMPLES : (last + 1) * ROW_SAMPLES]
        # row i of the band lies at v = top + first - 0.5 + (i + 0.5) / ROW_SAMPLES
        start = top + first - 0.5 + 0.5 / ROW_SAMPLES
        band_to_global = to_global @ np.array([[1.0, 0, 0], [0, 1.0 / ROW_SAMPLES, start], [0, 0, 1]])
        if level >= len(fine) or not _covers(fine[level], band_to_global, band.shape):
            _warp(coarse[min(max(level - finest_coarse, 0), len(coarse) - 1)], band_to_global, band)
        if level < len(fine):
            _warp(fine[level], band_to_global, band)
        first = last + 1


def _covers(level: GroundLevel, band_to_global: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether a level holds all ground that a band [rows, columns, 3] shows: its corners tell."""
    corners = np.array([[0, 0, 1], [shape[1] - 1, 0, 1], [0, shape[0] - 1, 1], [shape[1] - 1, shape[0] - 1, 1]])
    x, y, w = level.pixel_from_global() @ band_to_global @ corners.T
    rows, columns = level.image.shape[:2]
    within = (w > 0) & (x >= 0) & (y >= 0) & (x <= (columns - 1) * w) & (y <= (rows - 1) * w)
    return bool(within.all())


def _warp(level: GroundLevel, band_to_global: np.ndarray, band: np.ndarray) -> None:
    """Look a level up at each pixel of a band; pixels outside the level keep their colour."""
    cv2.warpPerspective(
        level.image,
        level.pixel_from_global() @ band_to_global,
        (band.shape[1], band.shape[0]),
        dst=band,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_TRANSPARENT,
    )


def _draw_car_shadows(view: View, solids: list[Solid]) -> None:
    """Darken the ground under cars."""
    height, width = view.depth.shape
    for solid in solids:
        if solid.kind != "body" or not _is_in_sight(view, solid.x, solid.y, _radius(solid), 0.0):
            continue
        base = oriented_rectangle(solid.x, solid.y, solid.yaw, solid.size[0] + 0.3, solid.size[1] + 0.3)
        points = np.concatenate([base, np.zeros((4, 1))], axis=1)
        points = clip_near(points @ view.global2camera[:3, :3].T + view.global2camera[:3, 3])
        if len(points) < 3:
            continue
        pixels = points @ view.intrinsic.T
        pixels = np.clip(pixels[:, :2] / pixels[:, 2:], -30000, 30000)
        mask = np.zeros((height, width), np.uint8)
        cv2.fillConvexPoly(mask, np.round(pixels * 16).astype(np.int32), 255, lineType=cv2.LINE_AA, shift=4)
        touched = mask > 0
        view.image[touched] *= 1.0 - (1.0 - SHADOW_UNDER_CAR) * (mask[touched].astype(np.float32) / 255.0)[:, None]


def _radius(solid: Solid) -> float:
    return math.hypot(solid.size[0], solid.size[1]) / 2


def _is_in_sight(view: View, x: float, y: float, radius: float, height: float) -> bool:
    """Whether an upright thing of this radius may show in the image, more than a pixel or so large."""
    sideways, _, depth = (view.global2camera[:3] @ (x, y, 0.0, 1.0)).tolist()
    if depth < -radius:
        return False
    focal = view.intrinsic[0, 0]
    edge = 1.1 * view.depth.shape[1] / 2 / focal  # tangent of the angle to the image's edge, and some more
    in_frame = abs(sideways) - radius < edge * (depth + radius) + 1.0
    return in_frame and focal * max(2 * radius, height) > SMALLEST_ON_SCREEN * depth


def finish_image(
    view: View, appearance: Appearance, noise: np.ndarray, offset: tuple[int, int], gain: float
) -> np.ndarray:
    """uint8 image [H, W, 3] BGR: vignette, gain and sensor noise (a larger field [N, M, 3], cut at an offset)."""
    height, width = view.depth.shape
    u = (np.arange(width, dtype=np.float32)[None] / width - 0.5) ** 2
    v = (np.arange(height, dtype=np.float32)[:, None] / height - 0.5) ** 2
    shade = gain * (1.0 - 0.35 * (u + v))
    image = view.image * shade[..., None]
    image += appearance.noise * noise[offset[0] : offset[0] + height, offset[1] : offset[1] + width]
    return cv2.cvtColor(cv2.convertScaleAbs(np.maximum(image, 0.0)), cv2.COLOR_RGB2BGR)
