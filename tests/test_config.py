"""Config: lossless through flags and JSON; errors name the field and the value."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import typing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charjax.conditions import FIELD_NEEDS, from_config_dict, from_saved
from charjax.config import (
    BATCHING_FIELDS,
    OPTIMIZER_FIELDS,
    Config,
    TrainConfig,
    differences,
    to_config_dict,
    to_dict,
)
from charjax.errors import InputError

PACKAGE = Path(__file__).parent.parent / "charjax"
MODULES = sorted(PACKAGE.glob("**/*.py"))
GETTERS = ("get", "getattr", "pop", "setdefault")
VALID = Config(train=TrainConfig(max_steps=1))


class Leaf(NamedTuple):
    """One field of the schema: where it is, its type, its declared limits."""

    section: str  # "": a field of Config itself
    name: str
    type: Any
    limits: typing.Mapping[str, Any]

    @property
    def path(self) -> str:
        return ".".join(filter(None, ("config", self.section, self.name)))

    def set(self, value: Any) -> dict[str, Any]:
        """A valid config, as nested dicts, except that this field has the value."""
        values = to_dict(VALID)
        (values[self.section] if self.section else values)[self.name] = value
        return values


def _leaves(schema: type, section: str = "") -> list[Leaf]:
    found, types = [], typing.get_type_hints(schema)
    for f in dataclasses.fields(schema):
        if dataclasses.is_dataclass(types[f.name]):
            found += _leaves(types[f.name], f.name)
        else:
            found.append(Leaf(section, f.name, types[f.name], f.metadata))
    return found


LEAVES = _leaves(Config)
SECTIONS = sorted({leaf.section for leaf in LEAVES} - {""})
by_path = {"ids": lambda leaf: leaf.path}


def assert_refused(values: Any, path: str, shown: str) -> None:
    """The config is refused in one line that names the field and the value."""
    with pytest.raises(InputError) as error:
        from_config_dict(values)
    message = str(error.value)
    assert message.startswith(path)
    assert shown in message
    assert message.isprintable(), "one line, nothing that moves the cursor"


def _values_of(leaf: Leaf) -> st.SearchStrategy[Any]:
    if "choices" in leaf.limits:
        return st.sampled_from(list(leaf.limits["choices"]))
    if "low" in leaf.limits:
        low, high = leaf.limits["low"], min(leaf.limits["high"], 1e9)
        number = st.integers if leaf.type is int else st.floats
        return number(leaf.type(low), leaf.type(high))
    return {bool: st.booleans(), str: st.text(max_size=5)}[leaf.type]


@st.composite
def valid_values(draw: st.DrawFn) -> dict[str, Any]:
    """Nested dicts of any valid config; the fields that depend on others are made to agree.

    No Config yet: the type checker draws random numbers, which a strategy must not.
    """
    values: dict[str, Any] = {section: {} for section in SECTIONS}
    for leaf in LEAVES:
        if typing.get_origin(leaf.type) is not tuple:
            (values[leaf.section] if leaf.section else values)[leaf.name] = draw(_values_of(leaf))
    data, train = values["data"], values["train"]
    data["split"] = draw(st.sampled_from([(0.9, 0.1, 0.0), (1.0, 0.0, 0.0), (0.5, 0.25, 0.25)]))
    rows = data["documents"] == "rows"
    columns = st.integers(0, 9) | st.sampled_from(["title", "text"])
    data["columns"] = draw(st.lists(columns, max_size=3 * rows).map(tuple))
    delimiter = data["csv_delimiter"][:1].strip('"\r\n')
    data["csv_delimiter"] = delimiter if delimiter.isascii() or data["unit"] != "byte" else ""
    if data["documents"] == "delimiter":
        data["delimiter"] = data["delimiter"] or "--"
        if data["lowercase"]:
            data["delimiter"] = data["delimiter"].lower()
    if values["model"]["dtype"] == "int8":
        values["model"]["dtype"] = "auto"
    values["optim"]["freeze"] = draw(st.sampled_from(["", "layer_0", "output"]))
    values["model"]["remat"] = draw(st.sampled_from([0, 1, data["seq_len"]]))
    train["max_steps"] = max(train["max_steps"], 1)
    temperatures = st.lists(st.floats(0, 1e9), max_size=3)
    values["sample"]["temperatures"] = draw(temperatures.map(tuple))
    return values


def _assemble(values: dict[str, Any]) -> Config:
    """The config by its constructors, without any check."""
    types = typing.get_type_hints(Config)
    return Config(**{k: types[k](**v) if k in SECTIONS else v for k, v in values.items()})


def _effective(values: dict[str, Any]) -> Config:
    """The config, with its default in every field that would have no effect."""
    default = to_dict(Config())
    for need in FIELD_NEEDS:
        section, leaf = need.field.split(".")
        if not need.is_met(_assemble(values)):
            values[section][leaf] = default[section][leaf]
    return _assemble(values)


@given(valid_values())
def test_flags_and_json_round_trip(values):
    config = _effective(values)
    assert from_config_dict(config) == from_config_dict(to_config_dict(config)) == config
    assert from_config_dict(json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("data", "stride", 3),
        ("model", "dropout_between", 0.5),
        ("optim", "final", 0.1),
        ("data", "keep_partial", True),
        ("data", "stateful", True),
        ("optim", "imported_rate", 0.5),
        ("train", "init_characters", "drop"),
    ],
)
def test_a_field_that_would_do_nothing_is_refused(section, field, value):
    values = to_dict(VALID)
    values[section][field] = value
    with pytest.raises(InputError, match=rf"config\.{section}\.{field}=.*has no effect"):
        from_config_dict(values)


@pytest.mark.parametrize(
    ("table", "section", "choosing", "read", "unread"),
    [
        (OPTIMIZER_FIELDS, "optim", "name", {"b1": 0.5}, {"eps": 0.5}),
        (BATCHING_FIELDS, "data", "batching", {"stateful": True}, {"targets": "last"}),
    ],
    ids=["optimizer", "batching"],
)
def test_one_table_row_adds_a_choice_and_the_fields_that_it_reads(
    monkeypatch, table, section, choosing, read, unread
):
    monkeypatch.setitem(table, "new", frozenset(read))
    values = to_dict(VALID)
    values[section] |= {choosing: "new", **read}
    assert getattr(getattr(from_config_dict(values), section), choosing) == "new"
    values[section] |= unread
    with pytest.raises(InputError, match="has no effect"):
        from_config_dict(values)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_no_default_of_a_field_at_its_point_of_use(path):
    """Neither `values.get("hidden", 512)` nor `getattr(config, "hidden", 512)`."""
    names = {leaf.name for leaf in LEAVES}
    calls = [n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Call)]
    for call in calls:
        if ast.unparse(call.func).split(".")[-1] in GETTERS and len(call.args) > 1:
            name = call.args[-2]
            is_field = isinstance(name, ast.Constant) and name.value in names
            assert not is_field, f"{ast.unparse(call)} has a default of its own"


@given(valid_values(), valid_values())
def test_differences_are_what_turns_one_config_into_the_other(old, new):
    changed = differences(_assemble(old), _assemble(new))
    for name, (before, after) in changed.items():
        *sections, last = name.split(".")
        place = old[sections[0]] if sections else old
        assert place[last] == before != after
        place[last] = after
    assert old == new


def test_what_is_left_out_takes_its_default():
    assert from_config_dict({"train": {"max_steps": 1}}) == VALID


def test_a_config_is_frozen_and_can_be_a_static_argument():
    with pytest.raises(dataclasses.FrozenInstanceError):
        VALID.seed = 1
    assert hash(VALID) == hash(from_config_dict(to_dict(VALID)))


@pytest.mark.parametrize("leaf", LEAVES, **by_path)
def test_every_default_is_valid_and_can_be_overridden_by_a_flag(leaf):
    values = to_dict(VALID)
    default = (values[leaf.section] if leaf.section else values)[leaf.name]
    assert default is not None
    assert from_config_dict(leaf.set(default)) == VALID


@pytest.mark.parametrize("leaf", [x for x in LEAVES if "choices" in x.limits], **by_path)
@given(word=st.text(max_size=9))
def test_a_choice_takes_its_words_alone(leaf, word):
    if word not in leaf.limits["choices"]:
        assert_refused(leaf.set(word), leaf.path, repr(word))


def _just_outside(leaf: Leaf) -> list[int | float]:
    low, high = leaf.limits["low"], leaf.limits["high"]
    if leaf.type is int:
        return [low - 1, -(10**400), high + 1 if math.isfinite(high) else 10**400]
    below, above = math.nextafter(low, -math.inf), math.nextafter(high, math.inf)
    return [below, above, -math.inf, math.inf, math.nan, 10**400]


@pytest.mark.parametrize("leaf", [x for x in LEAVES if "low" in x.limits], **by_path)
def test_a_number_just_outside_its_limits_is_refused(leaf):
    for value in _just_outside(leaf):
        # Of a number with hundreds of digits its first ones are enough.
        assert_refused(leaf.set(value), leaf.path, str(value)[:20])


@pytest.mark.parametrize("leaf", LEAVES, **by_path)
def test_a_value_of_another_type_is_refused(leaf):
    wrong = [None, {}, {"a": 1}, b"x", True, 1, 1.5, "1", [True], ["x"], [None]]
    fits = {float: (int, float)}.get(leaf.type, (leaf.type,))
    mixed = leaf.type == tuple[int | str, ...]  # of numbers and names, or one text
    for value in wrong:
        if type(value) not in fits and not (mixed and value in ("1", ["x"])):
            shown = value[0] if isinstance(value, list) and leaf.type not in (int, str) else value
            assert_refused(leaf.set(value), leaf.path, repr(shown).strip("[]"))


@pytest.mark.parametrize("leaf", [x for x in LEAVES if x.type is float], **by_path)
def test_an_integer_widens_to_a_float(leaf):
    given = math.ceil(leaf.limits["low"])
    value = to_dict(from_config_dict(leaf.set(given)))[leaf.section][leaf.name]
    assert (value, type(value)) == (float(given), float)


@pytest.mark.parametrize("section", ["", *SECTIONS])
@pytest.mark.parametrize("name", ["hiden", "", "a\nb", 3])
def test_an_unknown_field_is_refused(section, name):
    values = to_dict(VALID)
    (values[section] if section else values)[name] = 1
    shown = name if isinstance(name, str) and name.isprintable() else repr(name)
    assert_refused(values, ".".join(filter(None, ("config", section))), shown)


@pytest.mark.parametrize("value", [None, 3, "abc", [1]], ids=repr)
def test_a_config_and_its_sections_must_be_mappings(value):
    assert_refused(value, "config", repr(value))
    for section in SECTIONS:
        assert_refused({**to_dict(VALID), section: value}, f"config.{section}", repr(value))


@pytest.mark.parametrize(
    ("path", "shown", "changed"),
    [
        ("config.data.split", "(0.9, 0.1)", {"data": {"split": (0.9, 0.1)}}),
        ("config.data.split", "(0.9, 0.2, 0.0)", {"data": {"split": (0.9, 0.2, 0.0)}}),
        ("config.data.split", "(1.1, -0.1, 0.0)", {"data": {"split": (1.1, -0.1, 0.0)}}),
        ("config.data.split", "nan", {"data": {"split": (math.nan, 0.5, 0.5)}}),
        ("config.data.split", "nan", {"data": {"split": (0.5, 0.5, math.nan)}}),
        ("config.data.split", "0", {"data": {"split": (0.0, 0.5, 0.5)}}),
        ("config.data.columns", "rows", {"data": {"columns": (1,)}}),
        (
            "config.data.columns",
            "lower case",
            {"data": {"documents": "rows", "columns": ("id", "Text"), "lowercase": True}},
        ),
        ("config.data.targets", "last", {"data": {"targets": "last"}}),
        ("config.sample.temperatures", "-0.5", {"sample": {"temperatures": (1.0, -0.5)}}),
        ("config.sample.temperatures", "inf", {"sample": {"temperatures": (math.inf,)}}),
        ("config.sample.temperatures", "nan", {"sample": {"temperatures": (math.nan,)}}),
        (
            "config.optim.schedule",
            "cosine",
            {"optim": {"schedule": "cosine"}, "train": {"max_steps": 0, "max_minutes": 1.0}},
        ),
        ("config.train", "max_steps", {"train": {"max_steps": 0}}),
        ("config.optim.ema", "schedule_free", {"optim": {"name": "schedule_free", "ema": 0.9}}),
        (
            "config.optim.schedule",
            "schedule_free",
            {"optim": {"name": "schedule_free", "schedule": "linear"}},
        ),
        ("config.optim.b1", "schedule_free", {"optim": {"name": "schedule_free", "b1": 0.0}}),
        ("config.model.dtype", "--weights=int8", {"model": {"dtype": "int8"}}),
        ("config.optim.freeze", "layer_1", {"optim": {"freeze": "layer_1"}}),
        ("config.optim.freeze", "nothing", {"optim": {"freeze": "embedding,layer_0,output"}}),
        ("config.model.remat=3", "seq_len=64", {"model": {"remat": 3}}),
    ],
)
def test_a_contradiction_is_refused(path, shown, changed):
    values = to_dict(VALID)
    for section, fields in changed.items():
        values[section] |= fields
    assert_refused(values, path, shown)


@pytest.mark.parametrize("limit", ["max_steps", "max_epochs", "max_minutes"])
def test_one_limit_is_enough_to_end_a_run(limit):
    config = from_config_dict({"train": {limit: 1}})
    assert getattr(config.train, limit) == 1


def test_a_run_of_an_older_version_keeps_the_reading_that_it_had():
    values = json.loads(json.dumps(to_dict(VALID)))
    for field in ("boundary", "csv_delimiter", "delimiter", "header", "shuffle_documents"):
        del values["data"][field]
    assert from_saved(values).data == VALID.data
    values["data"] |= {"documents": "rows", "columns": [1]}
    old = from_saved(values).data
    assert (old.boundary, old.csv_delimiter, old.columns) == (False, ",", (1,))
    assert from_saved(to_dict(Config(data=old, train=VALID.train))).data == old
