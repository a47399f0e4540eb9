"""The intermediate representation: sizes, expressions, tensor networks, programs and passes.

Nothing in here imports torch, triton, cotengra or a backend.
"""

if __name__ != "tncompiler.ir":
    raise ImportError(
        f"this package was imported as {__name__!r}; the link at the top of the repository is "
        "for reading. Write 'import tncompiler.ir'."
    )
