"""Timings, always side by side with a peer in one run. Nothing here is a test."""

import os

# OpenBLAS's threads look for work for 2**28 cycles after each product (0.12 s at 2.3 GHz) and keep
# a core from whoever is timed next, which takes up to three times as long; here for half a
# millisecond. It is read when NumPy is imported.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")
