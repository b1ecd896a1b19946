"""Randomness and tokens as pure functions of (seed, path), so that any worker can make any part."""

import hashlib

import numpy as np


def _digest(seed: int, path: tuple) -> bytes:
    return hashlib.sha256("/".join(str(part) for part in (seed, *path)).encode()).digest()


def make_rng(seed: int, *path: object) -> np.random.Generator:
    """A generator that depends on the seed and the path alone."""
    return np.random.default_rng(int.from_bytes(_digest(seed, path)[:16], "big"))


def make_token(seed: int, *path: object) -> str:
    """A nuScenes token (32 hexadecimal digits) that depends on the seed and the path alone."""
    return _digest(seed, path).hex()[:32]


def make_uuid(seed: int, *path: object) -> str:
    """A map expansion token (8-4-4-4-12 hexadecimal digits) that depends on the seed and the path alone."""
    digits = make_token(seed, *path)
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
