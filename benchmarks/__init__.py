"""Measurements: what a drafter is worth, and what checkpoints cost."""
