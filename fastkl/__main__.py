"""``python -m fastkl``, the same as the command ``fastkl``."""

import sys

from fastkl.cli import main

if __name__ == "__main__":
    sys.exit(main())
