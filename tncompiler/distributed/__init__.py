"""Beyond one process: slices over ranks, checkpoints, index-sharded modules, predictions of size.

`tnc.compile(…, process_group=…)` gives a `RankedModule`. All ranks plan nothing but what rank 0
sends them, hold the same arguments and get the same results.
"""
