"""The errors that a user can meet, each with the exit code it ends a command with.

Every message is one line that names the file or the flag, the value, and the
remedy. A traceback from charjax therefore always means a defect of charjax.
"""

from __future__ import annotations


class CharjaxError(Exception):
    """Base of every error that a user can cause or meet; `exit_code` ends the command."""

    exit_code = 1


class InputError(CharjaxError):
    """A flag, a config field, a file or a text that charjax cannot work with."""

    exit_code = 2


class CheckpointError(CharjaxError):
    """No checkpoint that can be used: none there, or none that verifies."""

    exit_code = 3


class HostError(CharjaxError):
    """The machine refused: disk, network, lock or memory."""

    exit_code = 4


class DivergedError(CharjaxError):
    """Training left the finite numbers; the last good checkpoint is kept."""

    exit_code = 5


class InterruptedRunError(CharjaxError):
    """A signal ended the run after its state was saved.

    Attributes:
      exit_code: 128 plus the signal's number: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
