"""Models of torch and Keras become runs of charjax, with the same arrays; others are refused."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import h5py
import ml_dtypes
import numpy as np
import pytest

from charjax.checkpoint.checkpoints import Checkpoints
from charjax.checkpoint.files import UNFINISHED
from charjax.cli.arguments import Parser
from charjax.cli.commands import load_commands
from charjax.cli.main import main
from charjax.data.vocab import Vocab
from charjax.errors import HostError, InputError
from charjax.export.api import export_model
from charjax.export.conversion.arrays import ConvertedModel, in_order, with_order
from charjax.export.conversion.convert import SOURCES
from charjax.export.conversion.torch import _to_numpy
from charjax.export.conversion.vocabulary import read_vocabulary
from charjax.export.foreign import ForeignLayer, layer_parameters
from charjax.export.weights import named_weights
from charjax.inference.load import load_trained
from charjax.runtime.safetensors import safetensors_file
from tests.export.tiny import MODELS, any_model, trained_like

TORCH, KERAS = ("torch", "model.safetensors"), ("keras", "model.weights.h5")


@pytest.fixture
def convert(tmp_path, capfd):
    """`charjax convert` of a file with some bytes, and what it says; a refusal is one line."""

    def run(name: str, content: bytes, *, vocabulary: str = "v.txt", out: str = "run") -> str:
        (tmp_path / name).write_bytes(content)
        (tmp_path / "v.txt").write_text("abcde")
        source = "keras" if name.endswith((".keras", ".h5", ".weights.json")) else "torch"
        flags = [f"--from={source}", f"--vocabulary={tmp_path / vocabulary}"]
        code = main(["convert", str(tmp_path / name), *flags, f"--out={tmp_path / out}"])
        said = capfd.readouterr().err
        assert (code == 0) == (tmp_path / out / "run.json").exists()
        if code:
            assert (code, said[:9], said.count("\n")) == (2, "charjax: ", 1)
            assert not (tmp_path / out).exists()
        return said

    return run


@any_model
@pytest.mark.parametrize(("source", "name"), [TORCH, KERAS], ids=["torch", "keras"])
def test_an_export_is_converted_back_bit_for_bit(model, source, name, tmp_path):
    trained = trained_like(model, unk=model.layers > 1)
    export_model(trained, tmp_path, format=source)
    back = SOURCES[source](tmp_path / name)
    vocab, order = read_vocabulary(tmp_path / "vocabulary.json", back.vocab_size)
    assert (vocab, back.config) == (trained.vocab, model)
    arrays, wanted = named_weights(with_order(back.params, order)), named_weights(trained.params)
    assert arrays.keys() == wanted.keys()
    for path, array in wanted.items():
        np.testing.assert_array_equal(arrays[path], array, err_msg=path)


def test_a_converted_model_can_be_sampled_scored_exported_and_described(tmp_path, capfd):
    trained = trained_like(MODELS["gru-1-embed"])
    export_model(trained, tmp_path / "torch", format="torch")
    files = [tmp_path / "torch" / "model.safetensors", "--from=torch"]
    files += [f"--vocabulary={tmp_path}/torch/vocabulary.json", f"--out={tmp_path}/run"]
    assert main(["convert", *map(str, files)]) == 0
    assert "gru 1 x 12, embedding of 6, vocabulary of" in capfd.readouterr().err
    run = f"--workdir={tmp_path}/run"
    assert main(["info", run]) == 0
    info = json.loads(capfd.readouterr().out)
    assert (info["step"], info["hidden"]) == (0, 12)
    assert "converted from torch" in info["notice"]
    (tmp_path / "text.txt").write_text("the cat sat on a mat")
    assert main(["score", run, f"--file={tmp_path}/text.txt"]) == 0
    assert json.loads(capfd.readouterr().out)["chars"] == 19
    assert main(["sample", run, "--num_chars=9", "--prompt=the"]) == 0
    assert len(capfd.readouterr().out.rstrip("\n")) >= 3
    assert main(["export", run, f"--out={tmp_path}/again", "--format=torch"]) == 0
    again = (tmp_path / "again" / "model.safetensors").read_bytes()
    assert again == (tmp_path / "torch" / "model.safetensors").read_bytes()
    # Its text is not known: no corpus is read in its place, and the model card names none.
    for command in (["score", "--part=val"], ["sample", "--new"]):
        assert main([*command, run]) == 2
        assert "not known, as it was converted from torch" in capfd.readouterr().err
    assert main(["export", run, f"--out={tmp_path}/hub", "--format=hub"]) == 0
    card = (tmp_path / "hub" / "README.md").read_text("utf-8")
    assert "\nNot trained by charjax.\n" in card
    assert "Notice: converted from torch" in card
    assert "SHA-256" not in card
    converted = load_trained(tmp_path / "run", which="best")
    assert converted.training == "trained on unknown text of model.safetensors"
    capfd.readouterr()
    # And a folder in use is never written to.
    assert main(["convert", *map(str, files)]) == 2
    assert "exists; name a new folder" in capfd.readouterr().err


def test_a_conversion_that_was_killed_can_be_repeated(tmp_path, capfd):
    export_model(trained_like(MODELS["gru-1-embed"]), tmp_path / "torch", format="torch")
    out = tmp_path / "run"
    files = [tmp_path / "torch" / "model.safetensors", "--from=torch"]
    files += [f"--vocabulary={tmp_path}/torch/vocabulary.json", f"--out={out}"]
    arguments = ["convert", *map(str, files)]
    program = f"""
import os
from charjax.checkpoint.store import Store
from charjax.cli.main import main
Store.write = lambda *args: os._exit(9)
main({arguments})
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == 9
    (out / "checkpoints" / f"0{UNFINISHED}").mkdir()
    capfd.readouterr()
    (out / "notes.txt").touch()  # of the user
    assert main(arguments) == 2
    assert "exists; name a new folder" in capfd.readouterr().err
    (out / "notes.txt").unlink()
    assert main(arguments) == 0
    assert sorted(path.name for path in out.iterdir()) == [".lock", "checkpoints", "run.json"]
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["0"]
    # As if it was killed after it had saved: nothing is lost.
    (out / ".unsaved").touch()
    assert main(arguments) == 2
    assert main(["info", f"--workdir={out}"]) == 0


def test_a_run_that_another_process_has_converted_meanwhile_is_kept(tmp_path, monkeypatch, capfd):
    export_model(trained_like(MODELS["gru-1-embed"]), tmp_path / "torch", format="torch")
    out, read = tmp_path / "run", SOURCES["torch"]
    files = [tmp_path / "torch" / "model.safetensors", "--from=torch"]
    files += [f"--vocabulary={tmp_path}/torch/vocabulary.json", f"--out={out}"]
    arguments = ["convert", *map(str, files)]

    def read_while_another_converts(file: Path) -> ConvertedModel:
        monkeypatch.setitem(SOURCES, "torch", read)
        assert main(arguments) == 0
        return read(file)

    monkeypatch.setitem(SOURCES, "torch", read_while_another_converts)
    assert main(arguments) == 2
    assert "exists; name a new folder" in capfd.readouterr().err
    assert main(["info", f"--workdir={out}"]) == 0


def test_the_command_takes_every_framework():
    parser = Parser()
    load_commands()["convert"].add_arguments(parser)
    (source,) = (action for action in parser._actions if action.dest == "source")
    assert set(source.choices) == set(SOURCES)


# Biases, gates and tokens


@pytest.mark.parametrize(("cell", "gates"), [("gru", 12), ("lstm", 16), ("rnn", 4)])
def test_two_biases_become_their_sum_and_that_of_a_grus_candidate_stays_apart(cell, gates):
    rng = np.random.default_rng(0)
    shapes = ((5, gates), (4, gates), (gates,), (gates,))
    layer = ForeignLayer(*(rng.normal(size=shape).astype("f") for shape in shapes))
    apart = 4 if cell == "gru" else 0
    got, total = layer_parameters(cell, layer), layer.bias + layer.hidden_bias
    np.testing.assert_array_equal(got["bias"][: gates - apart], total[: gates - apart])
    np.testing.assert_array_equal(got["bias"][gates - apart :], layer.bias[gates - apart :])
    if apart:
        np.testing.assert_array_equal(got["recurrent"]["bias"], layer.hidden_bias[-apart:])
    assert ("bias" in got["recurrent"]) == bool(apart)


@pytest.mark.parametrize("model", [MODELS["gru-1-embed"], MODELS["lstm-3-one_hot"]])
def test_rows_and_columns_move_with_their_tokens(model):
    params = trained_like(model).params
    order = np.random.default_rng(0).permutation(params["output_bias"].size).tolist()
    moved, first = with_order(params, order), params["layer_0"]["kernel"]
    np.testing.assert_array_equal(moved["output_kernel"], params["output_kernel"][:, order])
    np.testing.assert_array_equal(moved["output_bias"], params["output_bias"][order])
    if model.embed:
        np.testing.assert_array_equal(moved["embedding"], params["embedding"][order])
    np.testing.assert_array_equal(
        moved["layer_0"]["kernel"], first if model.embed else first[order]
    )


# Vocabularies


@pytest.mark.parametrize(
    ("name", "content", "tokens", "order"),
    [
        ("v.json", '["[UNK]", "b", "a"]', "ba?", [1, 2, 0]),
        ("v.JSON", '["b", "[UNK]", "a"]', "ba?", [0, 2, 1]),
        ("v.json", '{"b": 1, "c": 0, "a": 2}', "cba", [0, 1, 2]),
        ("v.json", '{"symbols": "ba", "unit": "byte", "unk": true, "start": 0}', "ba?", [0, 1, 2]),
        ("text.txt", "cabcab", "abc", [0, 1, 2]),
        ("text.txt", "babab", "ab?", [1, 2, 0]),  # the model has one token more
    ],
)
def test_a_vocabulary_is_read_and_unk_moves_last(name, content, tokens, order, tmp_path):
    (tmp_path / name).write_text(content)
    found = read_vocabulary(tmp_path / name, 3)
    characters = tuple(tokens.rstrip("?"))
    assert found.vocab.characters == characters
    assert found.vocab.unk == ("?" in tokens)
    assert found.order == order


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("v.json", '["ab", "c", "d"]', "'ab': every token must be one character"),
        ("v.json", '["", "c", "d"]', "'': every token must be one character, or [UNK]; write a"),
        ("v.json", '["a", "a", "d"]', "a character occurs twice"),
        ("v.json", '["a", "b"]', "has 2 tokens, the model 3"),
        ("v.json", '{"a": 0, "b": 2, "c": 3}', "its ids must be 0 to 2"),
        ("v.json", '{"a": [], "b": 2, "c": 3}', "its ids must be 0 to 2"),
        ("v.json", "[1, 2, 3]", "must be a list of characters"),
        ("v.json", "7", "must be a list of characters"),
        ("v.json", "[" * 100000, "not JSON"),
        ("v.txt", "\udcff", "not valid UTF-8"),
        ("v.txt", "abcdefg", "has 7 tokens, the model 3"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_refused(name, content, said, tmp_path):
    (tmp_path / name).write_text(content, errors="surrogateescape")
    with pytest.raises(InputError, match=said.replace("[", r"\[")):
        read_vocabulary(tmp_path / name, 3)


def test_the_vocabulary_is_that_of_charjax(tmp_path):
    vocab = Vocab.from_text("abc", order="sorted", unit="byte", unk=True, boundary=True)
    content = json.dumps(vocab.to_json() | {"start": 3})
    (tmp_path / "v.json").write_text(content, encoding="utf-8-sig")  # with a byte order mark
    assert read_vocabulary(tmp_path / "v.json", 5).vocab == vocab


# torch


def state_dict(gates: int = 3, hidden: int = 4, **changes: object) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes: dict[str, object] = {
        "embedding.weight": (5, 2),
        "rnn.weight_ih_l0": (gates * hidden, 2),
        "rnn.weight_hh_l0": (gates * hidden, hidden),
        "rnn.bias_ih_l0": (gates * hidden,),
        "rnn.bias_hh_l0": (gates * hidden,),
        "head.weight": (5, hidden),
        "head.bias": (5,),
    } | changes
    return {
        name: rng.normal(size=shape).astype("f") if isinstance(shape, tuple) else shape
        for name, shape in shapes.items()
        if shape is not None
    }


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (state_dict(**{"rnn.weight_ih_l0_reverse": (12, 2)}), "has rnn.weight_ih_l0_reverse"),
        (state_dict(**{"rnn.weight_hr_l0": (3, 4)}), "has rnn.weight_hr_l0"),  # proj_size
        (state_dict(**{"norm.weight": (4,)}), "has norm.weight: charjax's model has no such part"),
        (state_dict(**{"attention.weight": (4, 4)}), "one embedding, or none, and one projection"),
        (state_dict(gates=2), "not those of a GRU, LSTM or RNN"),
        (
            state_dict(
                **{f"rnn.weight_{part}_l1": (15, n) for part, n in (("ih", 4), ("hh", 5))},
                **{f"rnn.bias_{part}_l1": (15,) for part in ("ih", "hh")},
            ),
            "has layers of 4 units and 5 units; charjax has one size a model",
        ),
        (state_dict(**{"rnn.weight_ih_l0": (12, 6)}), "layer_0/kernel is [6, 12], not [2, 12]"),
        (state_dict(**{"rnn.weight_hh_l0": None}), "the layer rnn._l0 has no weight_hh"),
        (state_dict(**{"rnn.bias_hh_l0": None}), "the layer rnn._l0 has no bias_hh"),
        (state_dict(**{"rnn.bias_ih_l0": None}), "the layer rnn._l0 has no bias_ih"),
        (state_dict(**{"head.weight": None, "head.bias": None}), "is [2, 5], not [4, 5]"),
        ({"head.weight": np.zeros((5, 4), "f")}, "no GRU, LSTM or RNN"),
        (state_dict(**{"head.bias": np.array([np.nan] * 5, "f")}), "head.bias is not finite"),
        (state_dict(**{"head.bias": np.zeros(5, "i4")}), "head.bias is int32"),
        (state_dict(**{"rnn.bias_ih_l0": (3, 4)}), "[2, 12], [4, 12], [3, 4], [12]"),
        (state_dict(**{"rnn.weight_hh_l0": np.zeros((), "f")}), "[2, 12], [1], [12], [12]"),
        (state_dict(**{"head.bias": (7,)}), "output_bias is [7], not [5]"),
        (state_dict(hidden=0), "model.hidden=0: must be from 1 to"),
    ],
)
def test_a_torch_model_of_another_kind_is_refused(arrays, said, convert):
    assert said in convert("m.safetensors", safetensors_file(arrays, {}))


def test_an_embedding_of_any_name_is_told_from_a_projection_without_bias(tmp_path):
    arrays = state_dict()
    del arrays["head.bias"]
    names = {"embedding.weight": "encoder.weight", "head.weight": "decoder.weight"}
    renamed = {names.get(name, name): array for name, array in arrays.items()}
    (tmp_path / "m.safetensors").write_bytes(safetensors_file(renamed, {}))
    params = SOURCES["torch"](tmp_path / "m.safetensors").params
    np.testing.assert_array_equal(params["embedding"], arrays["embedding.weight"])
    np.testing.assert_array_equal(params["output_kernel"], arrays["head.weight"].T)


def square(*names: str) -> dict[str, np.ndarray]:
    """A state dict of as many features and units as tokens, with these matrices."""
    rnn = {"rnn.weight_ih_l0": (15, 5), "embedding.weight": None, "head.weight": None}
    return state_dict(hidden=5, **rnn, **{"head.bias": None}, **dict.fromkeys(names, (5, 5)))


@pytest.mark.parametrize(
    ("names", "embedding", "said"),
    [
        (["fc.weight"], None, "fc.weight is taken to be the projection alone, and the input one-h"),
        (["tok_emb.weight"], "tok_emb.weight", "tok_emb.weight is taken to be the embedding, too"),
        (
            ["fc.weight", "tok_emb.weight"],
            "tok_emb.weight",
            "tok_emb.weight is taken to be the emb",
        ),
    ],
)
def test_what_the_sizes_of_a_matrix_do_not_tell_its_name_does_which_is_said(
    names, embedding, said, tmp_path, convert
):
    arrays = square(*names)
    assert said in convert("m.safetensors", safetensors_file(arrays, {}))
    params = SOURCES["torch"](tmp_path / "m.safetensors").params
    np.testing.assert_array_equal(params["output_kernel"], arrays[names[0]].T)
    np.testing.assert_array_equal(params.get("embedding"), arrays.get(embedding))


@pytest.mark.parametrize("names", [("fc.weight", "tok.weight"), ("embed.weight", "unembed.weight")])
def test_an_embedding_that_nothing_tells_from_the_projection_is_refused_with_a_remedy(
    names, convert
):
    said = convert("m.safetensors", safetensors_file(square(*names), {}))
    assert "; give the embedding alone a name with 'emb' in it" in said


def test_two_equal_matrices_are_both_the_embedding_and_the_projection(tmp_path):
    matrix = np.arange(25, dtype="f").reshape(5, 5)
    arrays = square() | {"fc.weight": matrix, "tok.weight": matrix}
    (tmp_path / "m.safetensors").write_bytes(safetensors_file(arrays, {}))
    params = SOURCES["torch"](tmp_path / "m.safetensors").params
    np.testing.assert_array_equal(params["embedding"], matrix)
    np.testing.assert_array_equal(params["output_kernel"], matrix.T)


def test_a_tied_projection_that_safetensors_left_out_is_read(tmp_path):
    """safetensors.torch.save_model keeps one of two names of an array; the header has both."""
    arrays = state_dict(**{"embedding.weight": (5, 4), "rnn.weight_ih_l0": (12, 4)})
    del arrays["head.weight"]
    content = safetensors_file(arrays, {"head.weight": "embedding.weight", "format": "pt"})
    (tmp_path / "m.safetensors").write_bytes(content)
    params = SOURCES["torch"](tmp_path / "m.safetensors").params
    np.testing.assert_array_equal(params["embedding"], arrays["embedding.weight"])
    np.testing.assert_array_equal(params["output_kernel"], arrays["embedding.weight"].T)
    np.testing.assert_array_equal(params["output_bias"], arrays["head.bias"])


SHARDS = {"a.safetensors": ("embedding.weight", "head.bias"), "b.safetensors": ("rnn.", "head.w")}
INDEX = "model.safetensors.index.json"


def shards() -> dict[str, bytes]:
    """The arrays of `state_dict` in two files, and the index of both."""
    files, weight_map, arrays = {}, {}, state_dict()
    for shard, starts in SHARDS.items():
        part = {name: array for name, array in arrays.items() if name.startswith(starts)}
        files[shard] = safetensors_file(part, {"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {"total_size": 588}, "weight_map": weight_map}
    return files | {INDEX: json.dumps(index).encode()}


def test_a_model_in_shards_is_read_by_its_index_and_its_digest_is_of_the_shards(tmp_path, convert):
    files = shards()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert "gru 1 x 4, embedding of 2" in convert(INDEX, files[INDEX])
    (tmp_path / "whole.safetensors").write_bytes(safetensors_file(state_dict(), {}))
    params = [SOURCES["torch"](tmp_path / name).params for name in (INDEX, "whole.safetensors")]
    for path, array in named_weights(params[1]).items():
        np.testing.assert_array_equal(named_weights(params[0])[path], array, err_msg=path)
    source = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))["source"]
    weights = b"".join(files[shard] for shard in sorted(SHARDS))
    assert source["sha256"] == hashlib.sha256(weights).hexdigest()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"b.safetensors": None}, "names 'b.safetensors', which is no file beside it"),
        ({"b.safetensors": b"cut"}, "b.safetensors: not a sound safetensors file"),
        (
            {"b.safetensors": safetensors_file({"head.bias": np.zeros(5, "f")}, {})},
            "names head.weight, which its shard does not have",
        ),
        ({INDEX: b'{"weight_map": {"a": "../a"}}'}, "names '../a', which is no file beside it"),
        ({INDEX: b'{"weight_map": {"a": ""}}'}, "names '', which is no file beside it"),
        ({INDEX: b'{"weight_map": []}'}, "weight_map"),
        ({INDEX: b"{}"}, "weight_map"),
        ({INDEX: b"[]"}, "not a JSON object"),
    ],
)
def test_damaged_shards_are_refused(changes, said, tmp_path, convert):
    files = shards() | changes
    for name, content in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    assert said in convert(INDEX, files[INDEX])


@pytest.mark.parametrize(
    "names",
    [
        ("lstm.cell1", "lstm.cell2", "lstm.cell10"),
        ("layers.1.rnn", "layers.2.rnn", "layers.10.rnn"),
        ("rnn", "rnn2", "rnn10"),
        ("rnn3", "rnn1", "rnn2"),  # the first alone has as many features as the embedding
        ("reader", "deep1", "deep2"),
    ],
)
def test_cells_in_modules_of_any_name_are_found_in_order(names, convert):
    arrays = {}
    for i, name in enumerate(names):
        inner = state_dict(gates=4, **{"rnn.weight_ih_l0": (16, 4 if i else 2)})
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            arrays[f"{name}.{part}"] = inner[f"rnn.{part}_l0"] + i
    arrays |= {n: a for n, a in state_dict().items() if not n.startswith("rnn")}
    assert "lstm 3 x 4, embedding of 2" in convert("m.safetensors", safetensors_file(arrays, {}))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["layers/gru", "layers/gru_1", "layers/gru_2", "layers/gru_10"], ""),
        (["block2/gru", "block10/gru"], ""),
        (["rnn._l0", "rnn._l1", "rnn2._l0"], ""),
        (["lower.rnn", "upper.rnn"], "the layers are taken in this order: lower.rnn, upper.rnn"),
    ],
)
def test_an_order_of_layers_that_no_number_gives_is_said(names, said, caplog):
    caplog.set_level("INFO", "charjax")
    layer = ForeignLayer(*np.zeros((2, 4, 12)), *np.zeros((2, 12)))
    assert in_order(dict.fromkeys(reversed(names), layer)) == names
    assert caplog.text.count("in this order") == bool(said)
    assert said in caplog.text


def test_a_tensor_that_numpy_cannot_hold_is_named():
    class Tensor:
        dtype, layout, device = "torch.float32", "torch.sparse_coo", "cpu"

        def detach(self):
            return self

        def numpy(self):
            raise TypeError("can't convert")

    with pytest.raises(
        InputError, match=r"^head\.weight: is torch\.float32, torch\.sparse_coo, on"
    ):
        _to_numpy("head.weight", Tensor(), SimpleNamespace(bfloat16="bfloat16"))


# Keras


def keras_arrays(**changes: object) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes: dict[str, object] = {
        "layers/embedding/vars/0": (5, 2),
        "layers/gru/cell/vars/0": (2, 12),
        "layers/gru/cell/vars/1": (4, 12),
        "layers/gru/cell/vars/2": (2, 12),
        "layers/dense/vars/0": (4, 5),
        "layers/dense/vars/1": (5,),
        "optimizer/vars/0": (),
        "layers/my_model/optimizer/vars/0": (),  # of a model in a model, both of which are compiled
        "layers/dropout/seed_generator/seed_generator_state": (2,),
    } | changes
    return {
        n: rng.normal(size=shape).astype("f") for n, shape in shapes.items() if shape is not None
    }


def h5(**changes: object) -> bytes:
    """Weights of a model with some of the shapes changed."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for path, array in keras_arrays(**changes).items():
            file[path] = array
    return content.getvalue()


def cells(layer: str, *shapes: tuple[int, ...]) -> dict[str, object]:
    return {f"layers/{layer}/cell/vars/{i}": shape for i, shape in enumerate(shapes)}


def archive(*layers: dict, **config: object) -> bytes:
    """A `.keras` file with the weights of `h5()`."""
    config |= {"layers": layers} if layers else {}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("config.json", json.dumps({"class_name": "Model", "config": config}))
        file.writestr("model.weights.h5", h5())
    return content.getvalue()


def layer_of(kind: str, *reads: str, calls: int = 1, name: str = "", **fields: object) -> dict:
    """A layer in the config of a functional model; it reads outputs `LAYER` or `LAYER:NUMBER`."""
    tensors = [tensor.partition(":") for tensor in reads]
    history = [{"config": {"keras_history": [n, 0, int(i or 0)]}} for n, _, i in tensors]
    call = {"args": history[:1], "kwargs": {"mask": None, "initial_state": history[1:]}}
    nodes = [call] * (calls if reads else 0)
    return {"class_name": kind, "name": name or kind, "config": fields, "inbound_nodes": nodes}


def sequential(kind: str = "GRU", **fields: object) -> bytes:
    """A `.keras` file of a Sequential model, in which layers do not say what they read."""
    names = {"InputLayer": {}, "Embedding": {}, kind: fields, "Dense": {"activation": "softmax"}}
    return archive(*(serialized(name, **of) for name, of in names.items()))


def serialized(kind: str, **fields: object) -> dict:
    return {"class_name": kind, "config": fields}


def rnn_of(*cells: dict, **fields: object) -> bytes:
    """A Sequential model whose recurrent layer is an `RNN` of one cell, or of stacked ones."""
    cell = cells[0] if len(cells) == 1 else serialized("StackedRNNCells", cells=cells)
    return sequential("RNN", cell=cell, **fields)


DAMAGED = "damaged, or not a file of Keras 3; save one file with Keras 3, by model.save_weights("
INPUTS = (layer_of("InputLayer"), layer_of("InputLayer", name="state"))
EMBEDDING = layer_of("Embedding", "InputLayer")
GRU = layer_of("GRU", "Embedding", "state")
DENSE = layer_of("Dense", "GRU", activation="softmax")
LAST = layer_of("Dense", "GaussianNoise")


def functional(*layers: dict) -> bytes:
    return archive(*INPUTS, *layers)


def linked() -> bytes:
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file["layers"] = h5py.ExternalLink("other.h5", "/layers")
    return content.getvalue()


def nested() -> bytes:
    """Groups that contain themselves."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for name in "ab":
            file[name] = file["/"]
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    {
        "reset before": (h5(**{"layers/gru/cell/vars/2": (12,)}), "reset_after=False"),
        "norm": (h5(**{"layers/norm/vars/0": (4,)}), "has layers/norm/vars/0"),
        "bidirectional": (
            h5(**cells("bidirectional/forward_layer", (4, 12), (4, 12))),
            "a bidirectional layer",
        ),
        "two cells": (h5(**cells("lstm", (4, 16), (4, 16))), "gru and lstm"),
        "inner": (
            h5(**cells("inner/gru", (4, 12), (4, 12))),
            "are layers/gru, layers/inner/gru: the names do not tell their order",
        ),
        "an attribute and a list": (
            h5(**{f"first/cell/vars/{i}": (4, 12) for i in (0, 1)}),
            "are first, layers/gru: the names do not tell their order",
        ),
        "RNN of a cell": (
            h5(**cells("rnn", (4, 12), (4, 12))),
            "are layers/gru, layers/rnn: the names do not tell their order",
        ),
        "no cell": (h5(**cells("gru", *3 * (None,))), "no GRU, LSTM or SimpleRNN"),
        "shapes": (h5(**cells("gru", (2, 13))), "[2, 13], [4, 12], [12], [12]: not those of a"),
        "reset_after": (sequential(reset_after=False), "reset_after=False"),
        "activation": (sequential(activation="relu"), "activation='relu'"),
        "backwards": (sequential(go_backwards=True), "go_backwards=True"),
        "class": (sequential("ConvLSTM1D"), "has a layer of class ConvLSTM1D"),
        "cell": (rnn_of(serialized("Mine")), "has a layer of class Mine"),
        "backwards rnn": (rnn_of(serialized("GRUCell"), go_backwards=True), "go_backwards=True"),
        "activation of a cell": (
            rnn_of(serialized("GRUCell"), serialized("GRUCell", activation="relu")),
            "class GRUCell has activation='relu'",
        ),
        "called twice": (
            functional(EMBEDDING, layer_of("GRU", "Embedding", calls=2), DENSE),
            "the layer GRU must read the layer before it",
        ),
        "branch": (functional(EMBEDDING, GRU, layer_of("Dense", "Embedding")), "layer Dense must"),
        "state": (functional(EMBEDDING, GRU, layer_of("Dense", "GRU:1")), "layer Dense must read"),
        "decoder": (
            functional(
                EMBEDDING, GRU, layer_of("GRU", "Embedding", "GRU:1", name="decoder"), DENSE
            ),
            "the layer decoder must read the layer before it",
        ),
        "mask": (
            functional(layer_of("Embedding", "InputLayer", mask_zero=True), GRU, DENSE),
            "mask_zero=True",
        ),
        "softmax twice": (
            functional(EMBEDDING, GRU, DENSE, layer_of("Softmax", "Dense")),
            "a softmax, of the class Dense, comes before",
        ),
        "softmax between": (
            functional(EMBEDDING, GRU, layer_of("Softmax", "GRU"), layer_of("Dense", "Softmax")),
            "class Softmax",
        ),
        "softmax over time": (
            functional(
                EMBEDDING, GRU, layer_of("Dense", "GRU"), layer_of("Softmax", "Dense", axis=1)
            ),
            "axis=1",
        ),
        "link": (linked(), "is a link"),
        "nested": (nested(), "no GRU, LSTM or SimpleRNN"),
        "zip": (b"PK\x03\x04 and more", DAMAGED),
        "hdf5": (b"\x89HDF\r\n\x1a\n and more", DAMAGED),
        "checkpoint of TensorFlow": (b'model_checkpoint_path: "ckpt_10"', DAMAGED),
    }.values(),
)
def test_a_keras_model_of_another_kind_is_refused(content, said, convert):
    assert said in convert("m.keras", content)


@pytest.mark.parametrize(
    ("name", "other"), [("m.keras", "torch"), ("m.weights.h5", "torch"), ("m.pt", "keras")]
)
def test_a_file_of_the_other_framework_is_refused_with_the_flag_that_it_needs(
    name, other, tmp_path, capfd
):
    (tmp_path / name).write_bytes(h5())
    flags = [f"--from={other}", f"--vocabulary={tmp_path / name}", f"--out={tmp_path / 'run'}"]
    assert main(["convert", str(tmp_path / name), *flags]) == 2
    (remedy,) = SOURCES.keys() - {other}
    assert capfd.readouterr().err.endswith(f"; give --from={remedy}\n")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.weights.json", b'{"weight_map": {"/layers/gru/cell/vars": ["m_00000.weights.h5"]}}'),
        ("m_00000.weights.h5", h5(**{f"layers/gru/cell/vars/{i}": None for i in (1, 2)})),
    ],
    ids=["index", "shard"],
)
def test_keras_weights_in_shards_are_refused_with_the_remedy(name, content, convert):
    said = convert(name, content)
    assert "shard" in said
    assert "save one file with Keras 3, by model.save_weights('NAME.weights.h5')" in said


CHECKED, ASSUMED = "its layers have reset_after", "assumed, as the file does not say it: reset_aft"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (sequential(activation="tanh", recurrent_activation="sigmoid", reset_after=True), CHECKED),
        (rnn_of(serialized("GRUCell", reset_after=True), go_backwards=False), CHECKED),
        (functional(EMBEDDING, GRU, DENSE), CHECKED),
        (functional(EMBEDDING, GRU, layer_of("GaussianNoise", "GRU", stddev=0.1), LAST), CHECKED),
        (archive({"config": {"layers": [*INPUTS, EMBEDDING, GRU, DENSE]}}), CHECKED),
        (h5(), ASSUMED),
        (archive(name="mine"), ASSUMED),
    ],
    ids=[
        *("sequential", "cell", "functional", "noise", "model in a model"),
        *("weights alone", "a class of the user"),
    ],
)
def test_a_keras_model_is_read_and_checked_where_its_file_describes_the_layers(
    content, said, convert
):
    """Also with an optimizer and a dropout layer, which have arrays of their own."""
    message = convert("m.keras", content)
    assert "gru 1 x 4, embedding of 2" in message
    assert said in message


def test_the_stacked_cells_of_one_keras_layer_are_layers_in_order(convert):
    first, second = ((2, 12), (4, 12), (2, 12)), ((4, 12), (4, 12), (2, 12))
    stacked = cells("rnn/cell/cells/gru_cell", *first) | cells("rnn/cell/cells/gru_cell_1", *second)
    stacked = {name.replace("/cell/vars", "/vars"): shape for name, shape in stacked.items()}
    content = h5(**cells("gru", *3 * (None,)), **stacked)
    assert "gru 2 x 4, embedding of 2" in convert("m.weights.h5", content)


def test_keras_weights_in_bfloat16_are_those_values_in_float32(tmp_path):
    path, arrays = tmp_path / "m.weights.h5", keras_arrays()
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array.astype(ml_dtypes.bfloat16)
            file[name].attrs["dtype"] = "bfloat16"  # as Keras does
    params = SOURCES["keras"](path).params
    for name, values in (("embedding", "embedding/vars/0"), ("output_kernel", "dense/vars/0")):
        wanted = arrays[f"layers/{values}"].astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(params[name], wanted)


# Damaged and hostile files


@pytest.mark.parametrize(("source", "name"), [TORCH, KERAS], ids=["torch", "keras"])
def test_a_cut_file_is_refused(source, name, tmp_path, convert):
    export_model(trained_like(MODELS["gru-1-embed"]), tmp_path / "out", format=source)
    whole = (tmp_path / "out" / name).read_bytes()
    for size in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        said = convert(name, whole[:size], vocabulary="out/vocabulary.json")
        assert f"{tmp_path / name}" in said


def test_a_missing_file_and_a_folder_are_refused(tmp_path, capfd):
    flags = ["--from=torch", f"--vocabulary={tmp_path}/v.txt", f"--out={tmp_path}/run"]
    for name, said in (("none.safetensors", "No such file"), ("", "is a folder")):
        assert main(["convert", str(tmp_path / name), *flags]) == 2
        assert said in capfd.readouterr().err


@pytest.mark.parametrize("source", ["torch", "keras"])
@pytest.mark.parametrize(
    "name",
    [
        "ckpt_10",
        "ckpt_10.index",
        "ckpt_10.data-00000-of-00001",
        "",
        "model",
        "model/saved_model.pb",
    ],
)
def test_what_tensorflow_saves_is_named_with_what_can_be_read(name, source, tmp_path, capfd):
    (tmp_path / "model").mkdir()
    for file in ("ckpt_10.index", "ckpt_10.data-00000-of-00001", "model/saved_model.pb"):
        (tmp_path / file).write_bytes(b"bytes")
    flags = [f"--from={source}", f"--vocabulary={tmp_path}/v.txt", f"--out={tmp_path}/run"]
    assert main(["convert", str(tmp_path / name), *flags]) == 2
    (said,) = capfd.readouterr().err.splitlines()
    assert f"{tmp_path / name}: is of TensorFlow, no .keras or .weights.h5 file" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("out", ["file/run", "a[b"])
def test_an_error_about_the_folder_to_write_names_no_flag_of_other_commands(out, tmp_path, convert):
    (tmp_path / "file").write_text("mine")
    said = convert("m.safetensors", safetensors_file(state_dict(), {}), out=out)
    assert out.partition("/")[0] in said
    assert "--workdir" not in said


@pytest.mark.parametrize("is_made", [False, True], ids=["new", "empty"])
def test_a_conversion_that_could_not_be_written_can_be_repeated(
    is_made, tmp_path, convert, monkeypatch
):
    def fail(*_, **__):
        raise HostError("the disk is full")

    if is_made:
        (tmp_path / "run").mkdir()
    content = safetensors_file(state_dict(), {})
    with monkeypatch.context() as full_disk:
        full_disk.setattr(Checkpoints, "save", fail)
        (tmp_path / "m.safetensors").write_bytes(content)
        (tmp_path / "v.txt").write_text("abcde")
        flags = ["--from=torch", f"--vocabulary={tmp_path}/v.txt", f"--out={tmp_path}/run"]
        assert main(["convert", f"{tmp_path}/m.safetensors", *flags]) == 4
    assert (tmp_path / "run").exists() == is_made
    assert "gru 1 x" in convert("m.safetensors", content)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("best.pth.tar", b"PK\x03\x04 and more"),
        ("best.pth.tar", b"\x80\x02\x8a\n and more"),
        ("m.pt", b"cos\nsystem\n(S'touch $RAN'\ntR."),
    ],
    ids=["zip", "pickle", "program"],
)
def test_a_file_of_torch_save_is_known_and_not_run(name, content, tmp_path, convert, monkeypatch):
    """With torch or without, nothing in the file is executed."""
    monkeypatch.setenv("RAN", str(tmp_path / "ran"))
    said = convert(name, content)
    assert "only torch reads this format" in said or "not a state dict" in said
    assert not (tmp_path / "ran").exists()
