"""What torch can do to a compiled network, on every backend: a function a row.

`subjects.py` has the columns, `table.py` the rows and what is expected of every cell.
"""
