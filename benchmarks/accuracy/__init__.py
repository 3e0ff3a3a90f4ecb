"""Accuracy of recipes on real sounds and on real annotations: `python -m benchmarks.accuracy`."""
