"""Light and weather of a scene: colours of the ground, the sky, haze, noise."""

from dataclasses import dataclass

import cv2
import numpy as np

from data.synthetic.ground import (
    ASPHALT,
    CROSSING,
    GRAINS,
    GRASS,
    KERB,
    NUM_MATERIALS,
    REPAIR,
    WALKWAY,
    WHITE,
    YELLOW,
)

WEATHERS = ("sunny", "overcast", "dusk", "night", "rain")
WEATHER_SHARES = (0.42, 0.28, 0.11, 0.09, 0.10)
SKY_SIZE = (720, 180)  # columns around the horizon, rows from SKY_LOW to SKY_HIGH
SKY_LOW, SKY_HIGH = -3.0, 42.0  # degrees of elevation


@dataclass(frozen=True)
class Appearance:
    """All colours RGB floats in 0..255; light factors multiply them."""

    sun: np.ndarray  # [3] direction towards the sun
    ambient: float
    diffuse: float
    tint: np.ndarray  # [3]
    haze: np.ndarray  # [3]
    visibility: float  # metres at which haze has taken 63 % of the contrast
    headlights: bool
    noise: float  # standard deviation, 0..255
    sky: np.ndarray  # [rows, columns, 3] uint8, row 0 highest
    ground_colors: np.ndarray  # [256, 3] uint8

    @property
    def shadow_per_metre(self) -> tuple[float, float] | None:
        """Where the shadow of a metre of height ends on the ground (dx, dy); None without shadows."""
        if self.diffuse < 0.3:
            return None
        return (-float(self.sun[0] / self.sun[2]), -float(self.sun[1] / self.sun[2]))

    def facing(self, normal: np.ndarray) -> np.ndarray:
        """Light [3] on a surface with unit normal [3]."""
        return self.tint * (self.ambient + self.diffuse * max(0.0, float(normal @ self.sun)))


def make_appearance(rng: np.random.Generator, wear: float) -> Appearance:
    """A random weather; `wear` is the share of worn paint."""
    weather = str(rng.choice(WEATHERS, p=WEATHER_SHARES))
    azimuth = rng.uniform(0, 2 * np.pi)
    elevation = np.deg2rad(rng.uniform(10, 18) if weather == "dusk" else rng.uniform(30, 65))
    sun = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    ambient, diffuse, tint, haze, visibility, noise = {
        "sunny": (0.62, 0.58, (1.04, 1.0, 0.94), (196, 208, 220), 700.0, 2.5),
        "overcast": (0.88, 0.08, (0.98, 1.0, 1.02), (200, 204, 208), 350.0, 3.0),
        "dusk": (0.56, 0.40, (1.10, 0.95, 0.85), (190, 160, 140), 400.0, 3.8),
        "night": (0.36, 0.0, (0.95, 0.92, 1.0), (18, 20, 28), 260.0, 6.5),
        "rain": (0.70, 0.0, (0.97, 1.0, 1.03), (165, 170, 175), 120.0, 4.0),
    }[weather]
    exposure = rng.uniform(0.85, 1.12)
    ambient, diffuse = ambient * exposure, diffuse * exposure
    tint, haze = np.array(tint) * rng.normal(1.0, 0.02, 3), np.array(haze) * exposure
    lit = tint * (ambient + diffuse * sun[2])
    shaded = tint * ambient
    return Appearance(
        sun=sun,
        ambient=ambient,
        diffuse=diffuse,
        tint=tint,
        haze=haze,
        visibility=visibility * float(rng.uniform(0.7, 1.3)),
        headlights=weather == "night",
        noise=noise * float(rng.uniform(0.6, 1.4)),
        sky=_make_sky(rng, weather, haze),
        ground_colors=_ground_colors(rng, lit, shaded, weather, wear),
    )


def _ground_colors(
    rng: np.random.Generator, lit: np.ndarray, shaded: np.ndarray, weather: str, wear: float
) -> np.ndarray:
    """Colours [256, 3] of (material + shadow) * GRAINS + grain."""
    asphalt = rng.uniform(72, 112) * np.array([1.0, 1.0, 1.02]) * (0.8 if weather == "rain" else 1.0)
    base = np.zeros((NUM_MATERIALS, 3))
    base[GRASS] = [(98, 122, 62), (120, 124, 74), (134, 116, 84), (86, 110, 60)][int(rng.integers(4))]
    base[WALKWAY] = rng.uniform(115, 150) * np.array([1.02, 1.0, 0.96])
    base[KERB] = rng.uniform(196, 222) * np.array([1.0, 1.0, 0.97])
    base[ASPHALT] = asphalt
    base[REPAIR] = asphalt * rng.uniform(0.72, 0.88)
    base[WHITE] = base[CROSSING] = rng.uniform(212, 240)
    base[YELLOW] = np.array([226, 178, 60]) * rng.uniform(0.9, 1.05)
    contrast = np.array([0.045, 0.02, 0.02, 0.022, 0.026, 0.01, 0.01, 0.01]) * rng.uniform(0.6, 1.3)
    grain = np.arange(GRAINS) - (GRAINS - 1) / 2
    colors = base[:, None] * (1.0 + contrast[:, None, None] * grain[None, :, None])  # [M, GRAINS, 3]
    worn = grain > np.quantile(grain, 1.0 - min(0.5, wear))
    for material in (WHITE, YELLOW, CROSSING):
        colors[material, worn] = 0.55 * colors[material, worn] + 0.45 * colors[ASPHALT, worn]
    both = np.stack([colors * lit, colors * shaded])  # [2, M, GRAINS, 3]
    return np.clip(np.round(both), 0, 255).astype(np.uint8).reshape(256, 3)


def _make_sky(rng: np.random.Generator, weather: str, haze: np.ndarray) -> np.ndarray:
    """A panorama with clouds and a dim skyline; column = azimuth (counter-clockwise from east), row 0 highest."""
    columns, rows = SKY_SIZE
    zenith = {
        "sunny": (92, 142, 208),
        "overcast": (206, 210, 214),
        "dusk": (96, 104, 150),
        "night": (10, 12, 20),
        "rain": (150, 155, 162),
    }[weather]
    elevation = np.linspace(SKY_HIGH, SKY_LOW, rows)[:, None, None]
    share = np.clip(elevation / 35.0, 0, 1) ** 0.6
    sky = np.asarray(haze) * (1 - share) + np.asarray(zenith, np.float64) * share
    sky = np.repeat(sky, columns, axis=1)
    clouds = np.zeros((rows, columns), np.float32)
    for cells, weight in ((6, 1.0), (14, 0.6), (40, 0.3)):
        field = rng.normal(0.0, 1.0, (cells // 2, cells)).astype(np.float32)
        field = np.concatenate([field, field[:, :1]], axis=1)  # the same at both ends
        clouds += weight * cv2.resize(field, (columns, rows), interpolation=cv2.INTER_CUBIC)
    cover = {"sunny": 0.5, "overcast": 0.25, "dusk": 0.5, "night": 0.05, "rain": 0.15}[weather]
    cloud = np.clip((clouds - 0.3) * cover, 0, 0.8)[..., None]
    bright = np.minimum(255.0, np.asarray(haze) * 1.15 + 10)
    sky = sky * (1 - cloud) + bright * cloud
    skyline = np.repeat(rng.uniform(0.4, 3.2, columns // 6), 6) + rng.normal(0, 0.12, columns)
    behind = elevation[..., 0] < skyline[None]
    shade = np.asarray(haze) * (0.62 + 0.2 * np.repeat(rng.random(columns // 6), 6))[:, None]
    sky = np.where(behind[..., None], shade[None] * np.array([0.92, 1.0, 0.92]), sky)
    return np.clip(np.round(sky), 0, 255).astype(np.uint8)
