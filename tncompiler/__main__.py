"""`python -m tncompiler` is the command `tnc`."""

import sys

from tncompiler.cli import main

sys.exit(main())
