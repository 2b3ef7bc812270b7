from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from charjax.runtime.signals import StopSignals, exit_on_signals

ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU)


@pytest.mark.parametrize("number", ALL)
def test_a_signal_is_noted_and_the_handlers_are_restored(number):
    before = [signal.getsignal(s) for s in ALL]
    with StopSignals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), number)
        assert signals.received == number
    assert [signal.getsignal(s) for s in ALL] == before


def test_a_second_interrupt_ends_the_process_at_once():
    program = """
import os, signal
from charjax.runtime.signals import StopSignals
with StopSignals() as signals:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    print(signals.received, flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    print("still here", flush=True)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "2\n", "")


def test_the_kernel_of_a_notebook_lives_on(monkeypatch):
    app = SimpleNamespace(initialized=lambda: True)
    monkeypatch.setitem(sys.modules, "ipykernel.kernelapp", SimpleNamespace(IPKernelApp=app))
    with pytest.raises(KeyboardInterrupt), exit_on_signals(pytest.fail):
        signal.raise_signal(signal.SIGINT)
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", ALL)
def test_an_ignored_signal_stays_ignored(number):
    """As a shell has background jobs ignore SIGINT, and nohup SIGHUP."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with exit_on_signals(pytest.fail), StopSignals() as signals:
            os.kill(os.getpid(), number)
            assert signals.received is None
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", ALL)
def test_the_exit_code_is_that_of_the_signal_though_the_terminal_is_gone(number):
    """Before there is something to save."""
    program = f"""
import os
from charjax.runtime.signals import exit_on_signals

def say(line):
    os.write(1, line.encode())
    raise OSError

with exit_on_signals(say):
    os.kill(os.getpid(), {int(number)})
    while True:
        pass
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    said = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
    assert ended.returncode == 128 + number
    assert ended.stdout.startswith(said.get(number, f"ended by {number.name}"))
    assert ended.stderr == ""


def test_in_another_thread_nothing_changes():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with StopSignals() as signals:
            seen.append((signal.getsignal(signal.SIGTERM), signals.received))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, None)]


@pytest.mark.parametrize("work", ["exit_on_signals(say)", "StopSignals()"])
def test_the_view_of_a_task_is_cleared_before_a_signal_ends_the_process(work):
    """So that the message, or the shell's next prompt, is alone on its line."""
    program = f"""
import os, signal, sys
from charjax.runtime.panel import RichDisplay
from charjax.runtime.signals import StopSignals, exit_on_signals

def say(line):
    print(line, file=sys.stderr, flush=True)

with {work}, RichDisplay(sys.stdout).task("training") as update:
    while True:
        os.kill(os.getpid(), signal.SIGINT)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "FORCE_COLOR": "1", "TERM": "xterm"},  # as on a terminal
        encoding="utf-8",
    )
    said = "interrupted\n" if work.startswith("exit") else ""
    assert ended.returncode == 130
    assert "training" in ended.stdout
    assert ended.stdout.endswith(f"\x1b[1A\x1b[2K{said}")


def test_a_terminal_that_takes_no_output_delays_the_exit_by_a_moment_alone():
    program = """
import os, signal, threading
from charjax.runtime.signals import exit_on_signals

with exit_on_signals(lambda line: threading.Event().wait()):
    os.kill(os.getpid(), signal.SIGTERM)
    while True:
        pass
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30)
    assert (ended.returncode, ended.stderr) == (143, b"")
