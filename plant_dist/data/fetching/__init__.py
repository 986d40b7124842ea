"""Corpora that may be downloaded freely: where they lie, and how they come whole."""
