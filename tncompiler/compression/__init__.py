"""Compression of models: search, healing, and bonds that grow and shrink."""
