"""Shortlists: which labels a document considers where there are too many for all."""
