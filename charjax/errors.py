"""Errors that a user can cause or meet, with the exit codes of the commands.

Each message is one line that names the file or the flag, the value, and the
remedy. A traceback from charjax therefore always means a bug in charjax.
"""

from __future__ import annotations


class CharjaxError(Exception):
    """Base class. `exit_code` is what a command exits with."""

    exit_code = 1


class InputError(CharjaxError):
    """A flag, a config field, a file or a text is invalid."""

    exit_code = 2


class CheckpointError(CharjaxError):
    """No checkpoint is usable: there is none, or all are damaged."""

    exit_code = 3


class StoreError(CharjaxError):
    """A packed text is damaged, or a run's text is not the one that it was trained on."""

    exit_code = 3


class HostError(CharjaxError):
    """The environment failed: disk, network, lock or memory."""

    exit_code = 4


class DivergedError(CharjaxError):
    """The loss or the weights became NaN or infinite; the last finite checkpoint is kept."""

    exit_code = 5


class InterruptedRunError(CharjaxError):
    """A signal ended the run, after its state was saved.

    Attributes:
      exit_code: 128 plus the number of the signal: 129 for SIGHUP, 130 for SIGINT, 138 for
        SIGUSR1, 143 for SIGTERM, 152 for SIGXCPU (on Linux).
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def first_line(error: Exception) -> str:
    """The first line of the message of an error from elsewhere; its type if it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]
