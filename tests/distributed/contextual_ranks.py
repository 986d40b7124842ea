"""What two gloo processes do in test_contextual_ranks.py; rank 0 writes what came out as JSON."""

from __future__ import annotations

from contextual_corpus import ALONE, train_contextual
from each_rank import run_on_each

if __name__ == "__main__":
    run_on_each(train_contextual, ALONE.seed)
