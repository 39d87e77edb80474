"""Detectors on very large images: budgets by area, masks as RLE, tiles."""
