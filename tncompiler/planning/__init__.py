"""Contraction order, cost and plans. The only package that imports cotengra."""
