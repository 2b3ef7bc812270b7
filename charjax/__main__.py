"""`python -m charjax` is the `charjax` command."""

import sys

from charjax.cli import main

if __name__ == "__main__":
    sys.exit(main())
