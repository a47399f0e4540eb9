"""Expressions from and to the forms that people have: einsum equations, networkx graphs, quimb.

Only one contraction of leaves has such a form; what is more than that raises and says why.
"""
