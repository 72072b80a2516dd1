"""Sweeps without anybody to run them: their settings, search spaces, cells, and what they will compute. No Ray, no Optuna."""
