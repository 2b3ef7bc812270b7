"""The `charjax` command, also as `python -m charjax`."""

import atexit
import gc
import signal
import sys

# Before any other import, so that an interrupt while modules load prints no traceback.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from charjax.cli.main import main as main  # for launch.py and the console script

# Modules and traced programs are over 100,000 objects that live until the end. Looking for garbage
# among them, every 700 objects and again at exit, takes a fifth of the time of a short command.
gc.set_threshold(100_000)
atexit.register(gc.freeze)

if __name__ == "__main__":
    sys.exit(main())
