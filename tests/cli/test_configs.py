"""Configs by name: `--config=NAME` and `charjax configs`, from any folder."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from charjax.cli.config_flags import load_config
from charjax.cli.main import main
from charjax.cli.named_configs import find_config, named_configs
from charjax.errors import InputError

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("given", ["shakespeare", "tutorials/grimm:better"])
def test_a_name_is_the_config_of_that_file(given):
    name, _, argument = given.partition(":")
    file = f"--config={ROOT}/configs/{name}.py:{argument}".removesuffix(":")
    override = "--config.model.hidden=7"
    assert load_config([f"--config={given}", override]) == load_config([file, override])


def test_a_file_of_that_path_wins_over_a_name(tmp_path):
    lines = (
        "from ml_collections import ConfigDict",
        "get_config = lambda: ConfigDict({'seed': 77, 'train': {'max_steps': 1}})",
    )
    (tmp_path / "shakespeare").write_text("\n".join(lines))
    name, config = load_config(["--config=shakespeare"])
    assert (name, config.seed) == ("shakespeare", 77)
    (tmp_path / "quickstart").mkdir()
    assert find_config("quickstart") == ROOT / "configs" / "quickstart.py"


IMPORT = "from ml_collections import ConfigDict\n"
PARTIAL = f"{IMPORT}def get_config(): return ConfigDict({{'model': {{'hidden': 16}}}})"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.hidden=big", "model.hidden=big: must be an integer"),
        ("model.dropout=[1]", "model.dropout=[1]: must be a finite number"),
        ("data.lowercase=yes", "data.lowercase=yes: must be true or false"),
        ("data.split=(0.8,0.2", "data.split=(0.8,0.2: must be a list"),
        ("model=3", "model=3: is a section; set its fields, as --config.model.cell"),
        ("model.=3", "model.=3: no such field"),
        ("model[0]=3", "model[0]=3: no such field"),
        ("train.max_step=3", "train.max_step=3: no such field; did you mean max_steps?"),
        ("seed.x=3", "seed.x=3: no such field"),
    ],
)
@pytest.mark.parametrize("config", ["shakespeare", "partial.py"])
def test_an_override_is_refused_with_what_it_must_be(config, override, words, tmp_path):
    (tmp_path / "partial.py").write_text(PARTIAL)
    with pytest.raises(InputError, match=f"^{re.escape(f'--config.{words}')}"):
        load_config([f"--config={config}", f"--config.{override}"])


def test_a_field_that_a_config_file_leaves_out_can_be_overridden(tmp_path):
    (tmp_path / "partial.py").write_text(PARTIAL)
    flags = ["--config.train.max_steps=3", "--config.model.layers=2"]
    _, config = load_config(["--config=partial.py", *flags])
    assert (config.train.max_steps, config.model.layers, config.model.hidden) == (3, 2, 16)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("return None", "--config=mine.py: get_config() must return a ConfigDict"),
        ("return 1 / 0", "--config=mine.py: ZeroDivisionError: division by zero"),
        ("exit(3)", "--config=mine.py: SystemExit: 3"),
        ("return {'seed': '1'}", "config.seed='1': must be an integer"),
        ("return {'sed': 1}", "config: no field 'sed'; there are seed, "),
        ("return ConfigDict({1: 2})", "config: no field "),
    ],
)
def test_a_config_file_that_returns_no_config_is_refused(code, words, tmp_path):
    (tmp_path / "mine.py").write_text(f"{IMPORT}def get_config(): {code}")
    with pytest.raises(InputError, match=f"^{re.escape(words)}"):
        load_config(["--config=mine.py"])
    with pytest.raises(InputError, match=r"mine\.py:better: takes no argument; leave it out$"):
        load_config(["--config=mine.py:better"])


def test_the_list_has_a_line_for_each_name(capsys):
    assert main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(named_configs())
    assert all(len(line.split()) > 3 for line in lines)
    assert main(["configs", "tutorials/grimm"]) == 0
    assert "Variants:" in capsys.readouterr().out


def test_a_copy_can_be_trained_with_and_is_never_overwritten(tmp_path, capsys):
    assert main(["configs", "shakespeare", "--copy"]) == 0
    assert "--config=shakespeare.py" in capsys.readouterr().out
    copy = tmp_path / "shakespeare.py"
    assert load_config(["--config=shakespeare.py"]) == load_config(["--config=shakespeare"])
    copy.write_text("# edited")
    assert main(["configs", "shakespeare", "--copy"]) == 2
    assert copy.read_text() == "# edited"
    assert "shakespeare.py" in capsys.readouterr().err
    copy.unlink()
    copy.symlink_to(tmp_path / "elsewhere")
    assert main(["configs", "shakespeare", "--copy"]) == 2
    written = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}
    assert written == {"shakespeare.py"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--config=shakespear"], ["shakespear", "--config=shakespeare"]),
        (["train", "--config=configs/shakespeare.py"], ["--config=shakespeare"]),
        (["train", "--config=."], ["--config=.: no such file", "see: charjax configs"]),
        (["train", f"--config={'x' * 300}"], ["no such file"]),
        (["configs", "grimm"], ["did you mean tutorials/grimm"]),
        (["configs", "zzz"], ["zzz", "see: charjax configs"]),
        (["configs", "--copy"], ["--copy", "shakespeare"]),
    ],
)
def test_a_wrong_name_is_one_line(arguments, words, capsys):
    assert main(arguments) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert all(word in line for word in words)


@pytest.mark.parametrize("content", [b"# A page.\n\nIt has words.\n", b'x = "caf\xe9"\n', b"\0"])
@pytest.mark.parametrize("folder", ["", "elsewhere/"])
@pytest.mark.parametrize("flags", [(), ("--copy",)])
def test_a_file_that_is_no_config_is_refused_and_not_copied(content, folder, flags, capsys):
    Path("elsewhere").mkdir()
    file = Path(f"{folder}page.md")
    file.write_bytes(content)
    assert main(["configs", str(file), *flags]) == 2
    assert f"{file}: is not a Python file" in capsys.readouterr().err
    assert [path for path in Path().rglob("*") if path.is_file()] == [file]


def test_the_wheel_has_every_folder_of_the_package_and_the_configs():
    files = [*(ROOT / "charjax").rglob("*.*"), *(ROOT / "configs").rglob("*.py")]
    folders = {file.parent.relative_to(ROOT).as_posix() for file in files if file.is_file()}
    packages = {folder.replace("/", ".") for folder in folders if "__pycache__" not in folder}
    names = {re.sub("^configs", "charjax.configs", package) for package in packages}
    assert sorted(PYPROJECT["tool"]["setuptools"]["packages"]) == sorted(names)


@pytest.mark.parametrize(
    ("flag", "columns"),
    [
        ("title,text", ("title", "text")),
        ("1,text", (1, "text")),
        ("1,2", (1, 2)),
        ("text", ("text",)),
        ("first name,2", ("first name", 2)),
        ("'a,b'", ("a,b",)),
        ("('a,b','c')", ("a,b", "c")),
    ],
)
def test_columns_are_separated_by_commas_as_in_other_flags(flag, columns):
    fields = ("--config.data.documents=rows", f"--config.data.columns={flag}")
    _, config = load_config(["--config=quickstart", *fields])
    assert config.data.columns == columns


def test_of_a_field_that_is_given_twice_the_last_value_counts_and_a_wrong_one_is_named():
    steps, split = "--config.train.max_steps", "--config.data.split"
    given = [f"{steps}=1", f"{split}=0.9,0.1,0", f"{steps}=2", f"{split}=0.8,0.1,0.1"]
    _, config = load_config(["--config=quickstart", *given])
    assert (config.train.max_steps, config.data.split) == (2, (0.8, 0.1, 0.1))
    with pytest.raises(InputError, match=f"^{steps}=1.5: must be an integer"):
        load_config(["--config=quickstart", f"{steps}=1", f"{steps}=1.5"])


def test_a_file_may_write_integers_and_lists(tmp_path):
    (tmp_path / "partial.py").write_text(
        "from ml_collections import ConfigDict\n"
        "values = {'train': {'max_minutes': 10}, 'data': {'split': [0.9, 0.1, 0.0]}}\n"
        "get_config = lambda: ConfigDict(values)\n"
    )
    given = ("model.hidden=5", "train.max_minutes=0.5", "data.split=0.8,0.1,0.1")
    _, config = load_config(["--config=partial.py", *(f"--config.{field}" for field in given)])
    expected = (5, 0.5, (0.8, 0.1, 0.1))
    assert (config.model.hidden, config.train.max_minutes, config.data.split) == expected
