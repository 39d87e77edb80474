"""Scenes of the embedded digits for tests that need no single digits, which take longer to make than all else."""

from xcit_mm.datasets.digits import SPLITS, _write_scenes, load_sources


def make_scenes(out, train, val, size):
    """``coco`` and ``ade`` of :func:`xcit_mm.datasets.digits.make_digits` with seed 0; no ``imagenet``."""
    sources = load_sources()
    for split, count in zip(SPLITS, (train, val)):
        _write_scenes(out, sources, split, count, size, 0)
    return out
