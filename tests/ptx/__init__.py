"""A machine for PTX: what triton compiled for a GPU runs on NumPy, block by block, warp by warp.

`text` reads PTX, `registers` its operands, `arithmetic` is the table of instructions that only
compute, `effects` the table of those that do more (`together`: of all lanes of a warp, with what
`matrices` says of tensor cores), `memory` and `sharing` check accesses, `machine` runs a grid, and
`handmade` makes small kernels. Slow, and meant to be: a wrong number, an access outside an array,
a missing barrier and an instruction that is not known are all errors.
"""
