"""Whole torch models: their weights as networks, back to dense, to files and back."""
