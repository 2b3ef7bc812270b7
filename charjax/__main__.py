"""`python -m charjax` is the `charjax` command."""

import sys

from charjax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
