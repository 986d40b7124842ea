"""Raw corpora to a prepared dataset, and a prepared dataset to batches (floor 2)."""
