"""Recipes: runs of upstream's own entrypoints, with settings that were thought through."""
