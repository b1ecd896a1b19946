"""Boxes and round crowns drawn into an image with a depth test, exact to the ray at each pixel's centre."""

from dataclasses import dataclass

import cv2
import numpy as np

from data.synthetic.appearance import Appearance

NEAR_PLANE = 0.15  # metres
FRACTION_BITS = 4


@dataclass(frozen=True)
class Solid:
    """An upright box to draw: centre (x, y), bottom z, yaw, size (length, width, height); look of its sides."""

    kind: str  # building, hedge, pole, body, cabin, wheels
    x: float
    y: float
    z: float
    yaw: float
    size: tuple[float, float, float]
    color: tuple[int, int, int]
    look: int = 0


@dataclass
class View:
    """One camera at one moment, and the image being drawn.

    camera2global and back [4, 4]; intrinsic [3, 3]; rays [3, 3]: (u, v, 1) to the global direction of the ray
    that advances one metre of depth; image [H, W, 3] float32 RGB; depth [H, W] float32, metres along the optical
    axis of what is drawn so far.
    """

    camera2global: np.ndarray
    global2camera: np.ndarray
    intrinsic: np.ndarray
    rays: np.ndarray
    image: np.ndarray
    depth: np.ndarray

    @property
    def position(self) -> np.ndarray:
        """The camera's place [3] in the global frame."""
        return self.camera2global[:3, 3]


def draw_solid(view: View, solid: Solid, appearance: Appearance) -> None:
    """Draw the visible sides (and the top, seen from above) of a box."""
    length, width, height = solid.size
    cos, sin = np.cos(solid.yaw), np.sin(solid.yaw)
    along, across, up = np.array([cos, sin, 0.0]), np.array([-sin, cos, 0.0]), np.array([0.0, 0.0, 1.0])
    base = np.array([solid.x, solid.y, solid.z])
    to_camera = view.position - base
    faces = []
    for axis, side, reach, extent in ((along, across, length, width), (across, along, width, length)):
        distance = float(to_camera @ axis)
        if abs(distance) > reach / 2:
            normal = axis * np.sign(distance)
            corner = base + normal * reach / 2 - side * extent / 2
            faces.append((corner, side, up, extent, height, normal))
    if to_camera[2] > height:
        corner = base - along * length / 2 - across * width / 2 + up * height
        faces.append((corner, along, across, length, width, up))
    for face in faces:
        _draw_face(view, solid, face, appearance)


def _draw_face(view: View, solid: Solid, face: tuple, appearance: Appearance) -> None:
    corner, a_axis, b_axis, a_size, b_size, normal = face
    corners = corner + np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * [a_size, b_size] @ np.stack([a_axis, b_axis])
    region = _coverage(view, corners)
    if region is None:
        return
    left, top, mask = region
    rows, columns = mask.shape
    window = (slice(top, top + rows), slice(left, left + columns))
    # depth t at a pixel: normal . (corner - position) / normal . ray, and rays are linear in (u, v)
    offset = corner - view.position
    rays = view.rays
    u = np.arange(left, left + columns, dtype=np.float32)[None]
    v = np.arange(top, top + rows, dtype=np.float32)[:, None]
    plane = (normal @ rays).astype(np.float32)
    facing = plane[0] * u + plane[1] * v + plane[2]
    depth = np.float32(normal @ offset) / np.where(np.abs(facing) < 1e-7, np.float32(1e-7), facing)
    visible = (depth > NEAR_PLANE) & (depth < view.depth[window]) & (mask > 0)
    if not visible.any():
        return
    light = (np.asarray(solid.color) * appearance.facing(normal)).astype(np.float32)
    color = np.broadcast_to(light, (rows, columns, 3))
    if normal[2] < 0.5 and solid.kind in ("building", "hedge", "cabin"):
        a = depth * _linear(a_axis @ rays, u, v) - np.float32(a_axis @ offset)
        b = depth * _linear(b_axis @ rays, u, v) - np.float32(b_axis @ offset)
        color = light * _side_pattern(solid, a, b, a_size, b_size, depth, appearance)[..., None]
    paste(view, window, color, depth, visible * (mask.astype(np.float32) / 255.0), appearance)


def _linear(row: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    row = row.astype(np.float32)
    return row[0] * u + row[1] * v + row[2]


def _side_pattern(solid, a, b, a_size, b_size, depth, appearance) -> np.ndarray:
    """Brightness [H, W] of a side at a metres along it and b metres up."""
    if solid.kind == "hedge":
        return 0.85 + 0.25 * np.sin(a * 23.0) * np.sin(b * 17.0)
    if solid.kind == "cabin":
        glass = (a > 0.12) & (a < a_size - 0.12) & (b > 0.05) & (b < b_size - 0.12)
        return np.where(glass, np.float32(0.3), np.float32(1.0))
    look = solid.look
    pitch, floor = 2.0 + (look % 5) * 0.5, 2.9 + (look // 5 % 4) * 0.3
    share_a, share_b = 0.4 + (look // 20 % 4) * 0.13, 0.4 + (look // 80 % 3) * 0.12
    column, row = np.floor(a / pitch), np.floor(b / floor)
    is_window = ((a / pitch - column) < share_a) & (np.abs(b / floor - row - 0.5) < share_b / 2)
    is_window &= (b < b_size - 0.6) & (a_size > 3)
    glass = np.full(a.shape, 0.45 + 0.05 * (look % 7), np.float32)
    if appearance.headlights:  # some windows are lit at night
        glass = np.where((column * 7 + row * 13 + look) % 5 < 1, np.float32(5.0), glass)
    fade = np.clip(90.0 / np.maximum(depth, 1.0), 0.0, 1.0).astype(np.float32)
    return 1.0 + np.where(is_window, (glass - 1.0) * fade, np.float32(0.0))


def draw_crown(view: View, center: np.ndarray, radius: float, color: np.ndarray, appearance: Appearance) -> None:
    """A round crown of leaves: a disk facing the camera at its centre's depth."""
    x, y, depth = (view.global2camera @ np.append(center, 1.0))[:3]
    if depth < 1.0:
        return
    u, v = (view.intrinsic @ np.array([x, y, depth]))[:2] / depth
    size = view.intrinsic[0, 0] * radius / depth
    height, width = view.depth.shape
    reach = 1.2 * size  # the rim is wavy
    left, right = max(0, int(u - reach)), min(width, int(u + reach) + 1)
    top, bottom = max(0, int(v - reach)), min(height, int(v + reach) + 1)
    if right <= left or bottom <= top or size < 0.7:
        return
    du = (np.arange(left, right, dtype=np.float32)[None] - u) / size
    dv = (np.arange(top, bottom, dtype=np.float32)[:, None] - v) / size
    wavy = 1.0 + 0.10 * np.sin(7 * np.arctan2(dv, du) + u) + 0.06 * np.sin(17 * np.arctan2(dv, du))
    alpha = np.clip((wavy - np.hypot(du, dv)) * size, 0.0, 1.0)
    window = (slice(top, bottom), slice(left, right))
    disk_depth = np.full(alpha.shape, depth, np.float32)
    alpha *= disk_depth < view.depth[window]
    shade = 0.8 - 0.3 * dv + 0.12 * np.sin(du * 11 + center[0]) * np.sin(dv * 13 + center[1])
    light = appearance.tint * (appearance.ambient + 0.4 * appearance.diffuse)
    paste(view, window, (color * light).astype(np.float32) * shade[..., None], disk_depth, alpha, appearance)


def paste(view: View, window: tuple, color: np.ndarray, depth: np.ndarray, alpha: np.ndarray, appearance) -> None:
    """Blend colours [h, w, 3] at depths [h, w] into the view with opacity [h, w]; haze and lamps applied."""
    shown = apply_air(color, depth, appearance)
    view.image[window] += alpha[..., None].astype(np.float32) * (shown - view.image[window])
    view.depth[window] = np.where(alpha > 0.5, depth, view.depth[window])


def apply_air(color: np.ndarray, depth: np.ndarray, appearance: Appearance) -> np.ndarray:
    """Haze by depth [h, w] in metres and, at night, the light of one's own lamps."""
    depth = np.clip(depth, 0.0, 2000.0)[..., None]
    if appearance.headlights:
        color = color * (0.75 + 1.3 * np.exp(-depth / np.float32(16.0)))
    share = np.exp(-depth / np.float32(appearance.visibility))
    return color * share + appearance.haze.astype(np.float32) * (1 - share)


def _coverage(view: View, corners: np.ndarray) -> tuple[int, int, np.ndarray] | None:
    """(left, top, coverage [h, w] uint8) of a planar polygon [N, 3], clipped at the near plane; None if hidden."""
    points = corners @ view.global2camera[:3, :3].T + view.global2camera[:3, 3]
    points = clip_near(points)
    if len(points) < 3:
        return None
    pixels = points @ view.intrinsic.T
    pixels = np.clip(pixels[:, :2] / pixels[:, 2:], -30000, 30000)
    height, width = view.depth.shape
    left, top = (max(int(low) - 1, 0) for low in pixels.min(axis=0))
    right, bottom = (min(int(high) + 2, side) for high, side in zip(pixels.max(axis=0), (width, height), strict=True))
    if right <= left or bottom <= top or view.depth[top:bottom, left:right].max() <= points[:, 2].min():
        return None
    mask = np.zeros((bottom - top, right - left), np.uint8)
    fixed = np.round((pixels - (left, top)) * (1 << FRACTION_BITS)).astype(np.int32)
    cv2.fillConvexPoly(mask, fixed, 255, lineType=cv2.LINE_AA, shift=FRACTION_BITS)
    return left, top, mask


def clip_near(points: np.ndarray) -> np.ndarray:
    """The part of a polygon [N, 3] (camera frame) before the near plane."""
    if points[:, 2].min() > NEAR_PLANE:
        return points
    kept = []
    for i in range(len(points)):
        a, b = points[i - 1], points[i]
        if (a[2] > NEAR_PLANE) != (b[2] > NEAR_PLANE):
            share = (NEAR_PLANE - a[2]) / (b[2] - a[2])
            kept.append(a + share * (b - a))
        if b[2] > NEAR_PLANE:
            kept.append(b)
    return np.array(kept).reshape(-1, 3)
