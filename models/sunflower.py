"""Directions that cover the plane evenly, for any number of them."""

import math

import torch
from torch import Tensor

GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))


def sunflower(radii: Tensor) -> Tensor:
    """Vectors [K, 2] of the given lengths [K], each turned from the one before by the golden angle."""
    angle = torch.arange(len(radii), device=radii.device) * GOLDEN_ANGLE
    return torch.stack([angle.cos() * radii, angle.sin() * radii], dim=1)
