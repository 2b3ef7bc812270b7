"""Measuring in turn, ratios of rounds, and pages that equal what the result files give."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import runpy
import shlex
import statistics
import sys
from pathlib import Path

import pytest

from benchmarks import gpu, pages, result_files
from benchmarks.common import Peer, measure, ratio
from benchmarks.performance import end_to_end, goals, page, sample, sweep, train_step
from benchmarks.quality import __main__ as quality
from benchmarks.tutorials import __main__ as tutorials
from benchmarks.worker import Task
from benchmarks.workload import Shape


def busy(seconds: float, chars: int) -> Task:
    """A peer whose unit of work takes this long; runs in a worker."""
    import time

    print("what a library says on standard output is no answer")

    def run(units: int) -> dict[str, int]:
        time.sleep(units * seconds)
        return {"units": units}

    return Task(chars, run, {"name": seconds})


def lacking() -> Task:
    """A peer whose package is not installed."""
    raise ImportError("No module named 'peer'")


def broken() -> Task:
    """A peer with a defect."""
    raise ValueError("it is broken")


def peer(name, task, **arguments):
    return Peer(name, f"benchmarks.test_benchmarks:{task}", arguments)


def test_peers_take_turns_and_the_faster_one_wins():
    peers = [
        peer("slow", "busy", seconds=0.03, chars=10),
        peer("fast", "busy", seconds=0.002, chars=10),
        peer("lacking", "lacking"),
        peer("broken", "broken"),
    ]
    measured = measure(peers, argparse.Namespace(rounds=3, turn_s=0.02, device="cpu"))
    slow, fast = (measured["peers"][name] for name in ("slow", "fast"))
    assert [len(figure["seconds"]) for figure in (slow, fast)] == [3, 3]
    assert fast["notes"][0]["units"] > 1  # repeated until the turn is long enough
    assert slow["notes"][0]["units"] == 1
    assert ratio(fast, slow) > 2
    assert fast["about"] == {"name": 0.002}
    assert measured["skipped"]["lacking"] == "No module named 'peer'"
    assert "it is broken" in measured["skipped"]["broken"]


def test_a_ratio_is_the_median_of_the_rounds():
    ours = {"chars": 10, "seconds": [1.0, 5.0, 1.0]}
    theirs = {"chars": 20, "seconds": [2.0, 5.0, 8.0]}
    assert ratio(ours, theirs) == 1.0  # of 1, 0.5 and 4: half the characters a unit


def test_what_was_not_measured_again_stays_if_machine_and_versions_are_the_same():
    new = dict.fromkeys(("python", "versions", "benchmark", "device", "small"), "same")
    new |= {"machine": "a", "groups": {"gru": 1}}
    old = new | {"groups": {"gru": 5, "lstm": 5}}
    assert result_files.keep_other_groups(old, new) == new | {"groups": {"gru": 1, "lstm": 5}}
    assert result_files.keep_other_groups(old | {"machine": "b"}, new) == new


def test_flops_are_those_of_the_matmuls():
    shape = Shape(cell="gru", hidden=3, batch=2, length=5, vocab=7, layers=2)
    recurrent, between, logits = 2 * 3 * 9, 3 * 9, 3 * 7
    assert shape.flops == 3 * 2 * 10 * (recurrent + between + logits)


def figure(chars_per_second, chars=100):
    return {
        "chars_per_second": chars_per_second,
        "chars": chars,
        "seconds": [chars / chars_per_second] * 3,
        "peak_bytes": 2**20,
        "about": {"parameters": 5},
    }


def results_of(peers):
    record = {"machine": "a machine", "date": "a day", "python": "3.11", "versions": {}}
    record |= {"command": "python -m benchmarks.train_step"}
    groups = {"gru": {"peers": peers, "skipped": {}, "shape": {"batch": 10, "length": 10}}}
    return {("train_step", "cpu"): record | {"groups": groups}}


@pytest.mark.parametrize("place", ["--out=/home/me/x.json", "--out '/home/my data/x.json'", ""])
def test_a_recorded_command_names_no_place_of_this_machine(place, monkeypatch):
    flags = ["--cells", "gru", *shlex.split(place), "--rounds=3"]
    monkeypatch.setattr(sys, "argv", ["sample", *flags])
    assert result_files.record()["command"].endswith(" --cells gru --rounds=3")


def test_the_best_of_several_peers_counts():
    peers = {goals.F32: figure(600), "keras jax": figure(100), "keras torch": figure(200)}
    (row,) = (g for g in goals.CPU if g.theirs == goals.KERAS and g.group == "gru")
    found = page.reached(row, results_of(peers))
    assert found == (pytest.approx(3.0), "keras torch")


def test_a_row_without_a_result_names_the_command_that_fills_it():
    text = page.page({})
    assert text.count("not measured") == len((*goals.CPU, *goals.GPU, *goals.SMALL_GOALS)) + 2
    assert text.count("`python -m benchmarks.performance.") >= len(goals.CPU) + len(goals.GPU)


def test_a_row_says_whether_its_goal_is_reached():
    peers = {goals.F32: figure(100), "torch float32": figure(50), "flax gru": figure(90)}
    text = page.page(results_of(peers))
    assert "| GRU float32 over torch float32 | ≥ 1.8 | **2.00** | reached |" in text
    assert "| ≥ 1.5 | **1.11** | not reached |" in text


def test_every_goal_names_peers_that_its_benchmark_measures():
    where = {"device": "gpu", "keras_python": "python"}
    shapes = [Shape(cell=cell) for cell in ("gru", "lstm")]
    names = {p.name for shape in shapes for p in train_step.peers(shape, **where)}
    names |= {p.name for p in sample.peers(Shape(), 1, 1)}
    names |= {p.name for p in end_to_end.peers(1, "", small=True)} | {goals.TRAINING}
    for goal in (*goals.CPU, *goals.GPU):
        assert names.issuperset((*goal.ours, *goal.theirs)), goal


def test_the_persistent_benchmark_says_in_a_line_that_there_is_no_gpu(monkeypatch):
    from benchmarks.performance import persistent  # with jax, which workers of `busy` do not need

    monkeypatch.setattr(sys, "argv", ["persistent"])
    with pytest.raises(SystemExit, match=r"benchmarks\.performance\.persistent: needs one NVIDIA"):
        persistent.main()


def code(name, source, limit_s=60.0):
    return gpu.Part(name, limit_s, ("-c", source))


GIVEN = {"device": "gpu", "small": False, "rounds": 1, "turn_s": 0.1, "minutes": 1}
HANGS = code("hangs", "import time; print('half done', flush=True); time.sleep(60)", 0.5)
FAILS = code("fails", "raise SystemExit('no such thing')")
WRITES = code("writes", "import sys; open(sys.argv[-1].removeprefix('--out='), 'w').write('{}')")


def test_a_part_that_hangs_or_fails_costs_no_other_part(tmp_path, capsys):
    ended = gpu.run_all([HANGS, FAILS, WRITES], tmp_path, argparse.Namespace(**GIVEN))
    assert list(ended.values()) == ["killed after 0.5 s", "exit code 1: no such thing", "ok"]
    assert [path.name for path in tmp_path.glob("*.json")] == ["writes_gpu.json"]
    assert "half done" in (tmp_path / "log.txt").read_text(encoding="utf-8")


def test_parts_that_no_time_is_left_for_are_named(tmp_path):
    args = argparse.Namespace(**GIVEN | {"minutes": 0})
    assert gpu.run_all([WRITES], tmp_path, args) == {"writes": "no time left"}


@pytest.mark.parametrize(
    ("module", "flags", "refused"),
    [
        (quality, "recipe --workdir=w --only gru", "unrecognized arguments: --only gru"),
        (quality, "arms --workdir=w --config=x", "unrecognized arguments: --config=x"),
        (quality, "arms --workdir=w --only no-decay", "invalid choice: 'no-decay'"),
        (quality, "arms --workdir=w --jobs=0", "argument --jobs: 0: must be at least 1"),
        (tutorials, "timing --config.seed=3", "unrecognized arguments: --config.seed=3"),
        (train_step, "--batch=0", "argument --batch: 0: must be at least 1"),
        (sample, "--rounds=0", "argument --rounds: 0: must be at least 1"),
        (end_to_end, "--steps=0", "argument --steps: 0: must be at least 1"),
        (sweep, "--cells gru", "--cells and --hidden are read with --over_torch alone"),
        (sweep, "--over_torch --quick", "--quick: not allowed with argument --over_torch"),
        (gpu, "--only=no_such_part", "--only=no_such_part: is in no name of ['sample --cells=gru'"),
    ],
)
def test_wrong_flags_are_refused(module, flags, refused, monkeypatch, capsys):
    monkeypatch.setattr("subprocess.Popen", None)  # nothing is measured before the refusal
    monkeypatch.setattr(sys, "argv", ["benchmark", *flags.split()])
    with pytest.raises(SystemExit):
        module.main()
    assert refused in capsys.readouterr().err


def test_a_command_that_fails_ends_the_benchmark_with_its_exit_code():
    with pytest.raises(SystemExit, match=r"^3$"):
        tutorials.run("-c", "raise SystemExit(3)")


INTERNAL = {"frameworks", "timing", "worker"}  # other modules of benchmarks/ alone start these


@pytest.mark.parametrize(
    "name",
    [
        ".".join(path.relative_to(pages.ROOT).with_suffix("").parts)
        for path in sorted(Path(__file__).parent.rglob("*.py"))
        if '\nif __name__ == "__main__":' in path.read_text(encoding="utf-8")
        and path.stem not in INTERNAL
    ],
)
def test_every_script_refuses_a_flag_that_it_lacks(name, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "argv", [name, "--no_such_flag"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_module(name, run_name="__main__")
    assert "usage:" in capsys.readouterr().err


def test_a_sweep_that_was_cut_off_keeps_the_points_of_the_one_before(tmp_path, monkeypatch):
    def sweep_until(last):
        def measure_point(shape, dtype, args):
            measured.append(dtype)
            if len(measured) > last:
                raise KeyboardInterrupt
            return {"fraction_of_peak": 0.5, "last": last}

        measured = []
        monkeypatch.setattr(sweep, "measure_point", measure_point)
        with contextlib.suppress(KeyboardInterrupt):
            sweep.main()
        return [point["last"] for point in json.loads(file.read_text())["groups"]["points"]]

    file = tmp_path / "sweep.json"
    monkeypatch.setattr(sys, "argv", ["sweep", "--small", f"--out={file}"])
    points = len(sweep.points(small=True, quick=False, device="cpu"))
    assert sweep_until(2) == [2, 2]
    assert sweep_until(3) == [2, 2]
    assert sweep_until(points) == [points] * points


def test_a_folder_as_the_result_file_is_refused_before_anything_is_measured(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["sweep", f"--out={tmp_path}"])
    with pytest.raises(SystemExit):
        sweep.main()
    assert f"{tmp_path}: is a folder; give a file in it" in capsys.readouterr().err


@pytest.mark.slow
def test_the_gpu_command_runs_on_a_cpu(tmp_path, monkeypatch, capsys):
    flags = ["--small", "--device=cpu", "--rounds=1", "--minutes=60", f"--out={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["gpu", *flags])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 0, (tmp_path / "log.txt").read_text(encoding="utf-8")
    files = {path.name for path in tmp_path.glob("*.json")}
    assert len(files) == 5  # and persistent_gpu.json
    assert files == {f"{part.file}_cpu.json" for part in gpu.PARTS} - {"persistent_cpu.json"}
    table = capsys.readouterr().out
    assert "not measured" not in table
    assert "ok, without a result: benchmarks.performance.persistent: needs one NVIDIA" in table


def test_the_loss_of_an_epoch_is_the_mean_of_its_steps():
    losses = [4.0, 3.0, 2.0, 2.0, 1.0, 1.0]  # three steps an epoch, records at 2, 3, 6
    records = [
        {"step": step, "train_loss": sum(losses[a:step]) / (step - a), "chars_per_second": 20.0}
        for a, step in ((0, 2), (2, 3), (3, 6))
    ]
    rows = tutorials.epochs(records, steps_per_epoch=3, chars_per_step=10)
    assert [row["train_loss"] for row in rows] == pytest.approx([3.0, 4 / 3])
    assert [row["seconds"] for row in rows] == [1.5, 1.5]


def test_every_result_file_is_read_by_a_page(monkeypatch):
    """By one of the pages here, or by a page or a script of tests/ that names it."""
    read, read_text = set(), Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda path, *args, **kw: read.add(path) or read_text(path, *args, **kw)
    )
    test_the_pages_are_what_the_result_files_give()
    monkeypatch.undo()
    others = [*pages.ROOT.glob("docs/*.md"), *pages.ROOT.glob("tests/**/*.py")]
    named = "".join(path.read_text(encoding="utf-8") for path in others)
    for file in {*result_files.RESULTS.iterdir()} - read:
        fault = file.stem.removeprefix("reliability_").replace("_", "-")
        assert file.name in named or f"| `{fault}` |" in named, file


# The loss that the text gives of a config, and that with dynamic evaluation.
QUOTED = re.compile(
    r"`configs/(shakespeare\w*)\.py`(?:\]\([^)]*\))?(?:,\s[^,|]*,)?(?:\sreaches)?\s(1\.\d{3})\b"
    r"(?:[^.|]*and\s(1\.\d{3})\swith\sdynamic)?"
)


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "docs/quality.md"])
def test_losses_in_the_text_of_a_page_are_the_means_of_the_result_files(name):
    quoted = QUOTED.findall((pages.ROOT / name).read_text(encoding="utf-8"))
    assert quoted
    for config, *losses in quoted:
        rows = result_files.load(f"quality_{config}")["rows"]
        for key, loss in zip(("stream", "dynamic"), losses, strict=True):
            mean = statistics.fmean(row[key] for row in rows if row["seed"] != "mean")
            assert loss in ("", f"{mean:.3f}"), (config, key)


def test_the_pages_are_what_the_result_files_give():
    for name, fill in pages.PAGES.items():
        text = (pages.ROOT / name).read_text(encoding="utf-8")
        assert fill(text) == text
