"""Metrics: what a ranking of labels and a set of decisions are worth.

Start at `evaluator.Evaluator`, which takes batches and gives `Results`; `report.write_report`
writes them. Streaming, mergeable over processes, and never documents times labels in memory.
"""
