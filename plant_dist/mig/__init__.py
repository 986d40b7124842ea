"""Mutual-information gain (MIG): which tokens speak for which label, and lists to learn it from."""
