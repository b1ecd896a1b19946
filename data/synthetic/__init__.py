"""A procedural world in nuScenes' format: towns, drives, rendered cameras, tables and map expansion.

Only tools/make_synthetic_nuscenes.py and tests import this package; it needs shapely and OpenCV, training does not.
"""
