"""The collapse alarms, under the names they have in outputs, logs and tools."""

# Spread across scenes (models.detector.spread_across_batch), of a batch in training, of a split elsewhere -> of what.
SPREADS = {"scene_std": "scene tokens", "ground_std": "ground tokens", "query_std": "map queries"}
