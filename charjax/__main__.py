"""The `charjax` command, also as `python -m charjax`."""

import signal
import sys

# Before any other import, so that an interrupt while modules load prints no traceback.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from charjax.cli.main import main as main  # for launch.py and the console script

if __name__ == "__main__":
    sys.exit(main())
