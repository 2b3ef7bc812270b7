"""Trains the run that a config file describes: python launch.py --config=configs/shakespeare.py."""

import sys

from charjax.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
