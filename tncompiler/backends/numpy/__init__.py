"""Program → NumPy source."""
