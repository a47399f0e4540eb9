"""Timings, always side by side with a peer in one run. Nothing here is a test."""
