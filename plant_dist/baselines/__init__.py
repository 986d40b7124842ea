"""Baselines: systems that need no training of ours and must be beaten.

Label popularity, and votes of the nearest training documents and label texts, in the space of
character n-grams or of an untrained encoder. They give shortlists for the same evaluator.
"""
