"""In a notebook, messages are lines and the loss is a picture that is replaced in place."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from xml.etree import ElementTree

import pytest

from charjax.runtime.display import Display, make_display
from charjax.runtime.notebook import NotebookDisplay, loss_picture
from charjax.runtime.status import StatusHistory, TrainingStatus


class Cell:
    """Stands in for `IPython.display`; keeps what each of its outputs shows, one after another.

    Attributes:
      outputs: by cell output, what was displayed and what replaced it.
    """

    def __init__(self) -> None:
        self.outputs: list[list[dict[str, str]]] = []

    def display(self, data, *, raw, display_id):
        assert raw
        assert display_id
        self.outputs.append([data])
        return SimpleNamespace(update=lambda data, raw: self.outputs[-1].append(data))


@pytest.fixture
def cell(monkeypatch) -> Cell:
    cell = Cell()
    for name in ("IPython", "IPython.display"):
        module = ModuleType(name)
        module.display = cell.display
        monkeypatch.setitem(sys.modules, name, module)
    return cell


def history(*losses: float) -> StatusHistory:
    history = StatusHistory()
    for number, loss in enumerate(losses):
        history.add(10 * number, TrainingStatus(loss, loss + 0.1 if number % 2 else None))
    return history


def test_the_stream_of_a_notebook_has_its_display():
    stream = type("OutStream", (), {"isatty": lambda self: False})
    stream.__module__ = "ipykernel.iostream"
    assert isinstance(make_display(stream()), NotebookDisplay)
    assert isinstance(NotebookDisplay(), Display)


def test_the_picture_of_a_run_is_replaced_in_place(cell, capsys, time_is):
    shown = NotebookDisplay()
    with shown.task("training") as update:
        for number, step in enumerate(range(0, 2000, 100), start=1):
            time_is(0.3 * number)
            loss = 3.0 - step / 1000
            update(step, 2000, f"loss {loss}", TrainingStatus(train_loss=loss))
        update(2000, 0, "evaluating <3>/9")
        shown.report("a message")
    (output,) = cell.outputs
    assert len(output) == 6, "one a second, and one at the end"
    assert "training: 2,000 · evaluating <3>/9" in output[-1]["text/plain"]
    assert "evaluating &lt;3&gt;/9" in output[-1]["text/html"]
    assert "<svg" in output[-1]["text/html"]
    assert output[-2]["text/plain"] == "training: 1,600 of 2,000 · loss 1.4 · 0:01 left"
    assert capsys.readouterr().out == "a message\n"


def test_a_task_without_losses_is_a_line(cell):
    with NotebookDisplay().task("reading the text") as update:
        update(5)
    assert cell.outputs[-1][-1] == {
        "text/html": "<div><small>reading the text: 5</small></div>",
        "text/plain": "reading the text: 5",
    }


def test_samples_and_tables_are_lines(capsys):
    shown = NotebookDisplay()
    shown.samples([("step 5, temperature 1", "ROMEO:\x1b[2J"), ("step 5, temperature 2", "thou")])
    shown.table([{"a": "1", "b": "2"}, {"c": "3"}])
    assert capsys.readouterr().out == (
        "=== step 5, temperature 1 ===\nROMEO:\\x1b[2J\n\n"
        "=== step 5, temperature 2 ===\nthou\n\na: 1\nb: 2\nc: 3\n"
    )


@pytest.mark.parametrize("losses", [(4.0,), (2.0, 2.0), (9.0, *(3.0 - i / 50 for i in range(99)))])
def test_a_picture_has_its_curves_within_the_axes(losses):
    picture = ElementTree.fromstring(loss_picture(history(*losses), "loss <&> \x1b"))
    lines = picture.findall("polyline")
    assert len(lines) == min(len(losses), 2)
    assert len(lines[0].get("points").split()) == len(losses)
    for line in lines:
        points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        assert all(44 <= x <= 630 and 10 <= y <= 214 for x, y in points)
        assert points == sorted(points)


def test_without_losses_there_is_no_picture():
    unknown = StatusHistory()
    unknown.add(0, TrainingStatus(best=1.0))
    assert loss_picture(unknown, "") == ""
