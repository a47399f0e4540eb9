"""Build, check and time the Triton backend on the machine's GPU: `python -m benchmarks.gpu`."""
