"""`python -m resin` is the same as `resin`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
