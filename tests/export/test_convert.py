"""Models of torch and Keras become runs of charjax, with the same arrays; others are refused."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from charjax.cli.main import main
from charjax.config import ModelConfig
from charjax.data.vocab import Vocab
from charjax.errors import InputError
from charjax.export.api import export_model
from charjax.export.convert import SOURCES, convert
from charjax.export.foreign import (
    ForeignLayer,
    ForeignModel,
    in_order,
    model_config,
    parameters,
)
from charjax.export.from_torch import _to_numpy
from charjax.export.vocabulary import read_vocabulary
from charjax.export.weights import named_weights, safetensors
from charjax.inference.load import load_trained

from .test_formats import MODELS, any_model, trained_like

TORCH, KERAS = ("torch", "model.safetensors"), ("keras", "model.weights.h5")


def refused(*arguments: str | Path, capfd) -> str:
    """The one line with which `charjax convert` refuses, leaving nothing behind."""
    capfd.readouterr()
    out = Path(str(arguments[-1]).removeprefix("--out="))
    assert main(["convert", *map(str, arguments)]) == 2
    said = capfd.readouterr().err
    assert said.startswith("charjax: ")
    assert said.count("\n") == 1
    assert not out.exists()
    return said


@any_model
@pytest.mark.parametrize(("source", "name"), [TORCH, KERAS], ids=["torch", "keras"])
def test_an_export_is_converted_back_bit_for_bit(model, source, name, tmp_path):
    trained = trained_like(model, unk=model.layers > 1)
    export_model(trained, tmp_path, format=source)
    vocab, order = read_vocabulary(tmp_path / "vocabulary.json", len(trained.vocab))
    assert vocab == trained.vocab
    back = SOURCES[source](tmp_path / name)
    assert model_config(back, len(vocab)) == model
    arrays, wanted = named_weights(parameters(back, order)), named_weights(trained.params)
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
    capfd.readouterr()
    # And a folder in use is never written to.
    assert main(["convert", *map(str, files)]) == 2
    assert "exists; name a new folder" in capfd.readouterr().err


# Biases and gates


def layer(rng, features: int, hidden: int, gates: int) -> ForeignLayer:
    shapes = ((features, gates), (hidden, gates), (gates,), (gates,))
    return ForeignLayer(*(rng.normal(size=shape).astype("f") for shape in shapes))


def test_two_biases_become_their_sum_and_the_candidates_stays_apart():
    rng = np.random.default_rng(0)
    gru = layer(rng, 5, 4, 12)
    kernel, bias = rng.normal(size=(4, 5)).astype("f"), np.zeros(5, "f")
    params = parameters(ForeignModel("gru", (gru,), None, kernel, bias), list(range(5)))
    got = params["layer_0"]
    np.testing.assert_array_equal(got["bias"][:8], (gru.bias + gru.hidden_bias)[:8])
    np.testing.assert_array_equal(got["bias"][8:], gru.bias[8:])
    np.testing.assert_array_equal(got["recurrent"]["bias"], gru.hidden_bias[8:])
    lstm = layer(rng, 5, 3, 12)
    kernel = rng.normal(size=(3, 5)).astype("f")
    params = parameters(ForeignModel("lstm", (lstm,), None, kernel, bias), list(range(5)))
    np.testing.assert_array_equal(params["layer_0"]["bias"], lstm.bias + lstm.hidden_bias)
    assert "bias" not in params["layer_0"]["recurrent"]


def test_arrays_that_do_not_fit_each_other_are_named():
    rng = np.random.default_rng(0)
    model = ForeignModel(
        "gru", (layer(rng, 6, 4, 12),), None, np.zeros((4, 5), "f"), np.zeros(5, "f")
    )
    with pytest.raises(InputError, match=r"layer 0: kernel is \[6, 12\], not \[5, 12\]"):
        model_config(model, 5)


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
        ("v.json", '["", "c", "d"]', "'': every token must be one character"),
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


def test_rows_and_columns_move_with_their_tokens():
    rng = np.random.default_rng(0)
    model = ForeignModel(
        "rnn",
        (layer(rng, 2, 4, 4),),
        rng.normal(size=(3, 2)).astype("f"),
        rng.normal(size=(4, 3)).astype("f"),
        rng.normal(size=3).astype("f"),
    )
    params = parameters(model, [1, 2, 0])
    np.testing.assert_array_equal(params["embedding"], model.embedding[[1, 2, 0]])
    np.testing.assert_array_equal(params["output_kernel"], model.output_kernel[:, [1, 2, 0]])
    np.testing.assert_array_equal(params["output_bias"], model.output_bias[[1, 2, 0]])


def test_a_tied_projection_that_safetensors_left_out_is_read(tmp_path):
    """safetensors.torch.save_model keeps one of two names of an array; the header has both."""
    arrays = state_dict(**{"embedding.weight": (5, 4), "rnn.weight_ih_l0": (12, 4)})
    del arrays["head.weight"]
    content = safetensors(arrays, {"head.weight": "embedding.weight", "format": "pt"})
    (tmp_path / "m.safetensors").write_bytes(content)
    model = SOURCES["torch"](tmp_path / "m.safetensors")
    np.testing.assert_array_equal(model.embedding, arrays["embedding.weight"])
    np.testing.assert_array_equal(model.output_kernel, arrays["embedding.weight"].T)
    np.testing.assert_array_equal(model.output_bias, arrays["head.bias"])


# What charjax has no model for


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
        (state_dict(**{"rnn.weight_ih_l0_reverse": (12, 2)}), "bidirectional"),
        (state_dict(**{"rnn.weight_hr_l0": (3, 4)}), "proj_size"),
        (state_dict(**{"norm.weight": (4,)}), "the state dict has norm.weight"),
        (state_dict(**{"attention.weight": (4, 4)}), "one embedding, or none, and one projection"),
        (state_dict(gates=2), r"no recurrent kernel of a GRU, LSTM or RNN"),
        (state_dict(**{"rnn.weight_hh_l0": None}), "rnn.weight_hh_l0 is missing"),
        (state_dict(**{"rnn.bias_hh_l0": None}), "rnn.bias_hh_l0 is missing"),
        (state_dict(**{"rnn.bias_ih_l0": None}), "rnn.bias_ih_l0 is missing"),
        (state_dict(**{"head.weight": None, "head.bias": None}), "is [2, 5], not [4, 5]"),
        ({"head.weight": np.zeros((5, 4), "f")}, "no GRU, LSTM or RNN"),
        (state_dict(**{"head.bias": np.array([np.nan] * 5, "f")}), "head.bias: is not finite"),
        (state_dict(**{"head.bias": np.zeros(5, "i4")}), "head.bias: is int32"),
        (state_dict(**{"rnn.bias_ih_l0": (3, 4)}), "rnn.bias_ih_l0 has the shape [3, 4]"),
        (state_dict(**{"head.bias": (7,)}), "the output bias is [7], not [5]"),
        (state_dict(hidden=0), "model.hidden=0: must be from 1 to"),
    ],
)
def test_a_torch_model_of_another_kind_is_refused(arrays, said, tmp_path, capfd):
    (tmp_path / "m.safetensors").write_bytes(safetensors(arrays, {}))
    (tmp_path / "v.json").write_text('["a", "b", "c", "d", "e"]')
    line = [tmp_path / "m.safetensors", "--from=torch", f"--vocabulary={tmp_path}/v.json"]
    assert said in refused(*line, f"--out={tmp_path}/run", capfd=capfd)


@pytest.mark.parametrize(
    "names",
    [
        ("lstm.cell1", "lstm.cell2", "lstm.cell10"),
        ("layers.1.rnn", "layers.2.rnn", "layers.10.rnn"),
        ("rnn", "rnn2", "rnn10"),
    ],
)
def test_cells_in_modules_of_any_name_are_found_in_order(names, tmp_path):
    arrays = {}
    for i, name in enumerate(names):
        inner = state_dict(gates=4, **{"rnn.weight_ih_l0": (16, 4 if i else 2)})
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            arrays[f"{name}.{part}"] = inner[f"rnn.{part}_l0"] + i
    arrays |= {n: a for n, a in state_dict().items() if not n.startswith("rnn")}
    (tmp_path / "m.safetensors").write_bytes(safetensors(arrays, {}))
    (tmp_path / "v.txt").write_text("abcde")
    convert(tmp_path / "m.safetensors", "torch", tmp_path / "v.txt", tmp_path / "run")
    model = load_trained(tmp_path / "run", which="best").config.model
    assert (model.cell, model.layers, model.embed) == ("lstm", 3, 2)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["layers/gru", "layers/gru_1", "layers/gru_2", "layers/gru_10"], ""),
        (["block2/gru", "block10/gru"], ""),
        (["rnn._l0", "rnn._l1", "rnn2._l0"], ""),
        (["lower.rnn", "upper.rnn"], "the order of the layers is that of their names: lower.rnn, "),
    ],
)
def test_an_order_of_layers_that_no_number_gives_is_said(names, said, caplog):
    caplog.set_level("INFO", "charjax")
    assert in_order(reversed(names)) == names
    assert caplog.text.count("the order of the layers") == bool(said)
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
        "layers/dropout/seed_generator/seed_generator_state": (2,),
    } | changes
    return {
        n: rng.normal(size=shape).astype("f") for n, shape in shapes.items() if shape is not None
    }


def h5(arrays: dict[str, np.ndarray]) -> bytes:
    h5py = pytest.importorskip("h5py")
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for path, array in arrays.items():
            file[path] = array
    return content.getvalue()


def keras_zip(arrays: dict[str, np.ndarray], **fields: object) -> bytes:
    gru = {"activation": "tanh", "recurrent_activation": "sigmoid", "reset_after": True} | fields
    layers = [
        {"class_name": "InputLayer", "config": {}},
        {"class_name": "Embedding", "config": {}},
        {"class_name": gru.pop("kind", "GRU"), "config": gru},
        {"class_name": "Dense", "config": {"activation": "softmax"}},
    ]
    return keras_archive(arrays, {"layers": layers})


def keras_archive(arrays: dict[str, np.ndarray], config: dict[str, object]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("config.json", json.dumps({"class_name": "Model", "config": config}))
        archive.writestr("model.weights.h5", h5(arrays))
    return content.getvalue()


NO_CELL = {f"layers/gru/cell/vars/{i}": None for i in range(3)}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (h5(keras_arrays(**{"layers/gru/cell/vars/2": (12,)})), "reset_after=False"),
        (h5(keras_arrays(**{"layers/norm/vars/0": (4,)})), "the file has layers/norm/vars/0"),
        (
            h5(
                keras_arrays(
                    **NO_CELL,
                    **{
                        f"layers/bidirectional/forward_layer/cell/vars/{i}": (4, 12) for i in (0, 1)
                    },
                )
            ),
            "bidirectional",
        ),
        (
            h5(keras_arrays(**{f"layers/lstm/cell/vars/{i}": (4, 16) for i in (0, 1)})),
            "gru and lstm",
        ),
        (
            h5(keras_arrays(**{f"layers/inner/gru/cell/vars/{i}": (4, 12) for i in (0, 1)})),
            "in layers and layers/inner",
        ),
        (h5(keras_arrays(**NO_CELL)), "no GRU, LSTM or SimpleRNN"),
        (keras_zip(keras_arrays(), reset_after=False), "reset_after=False"),
        (keras_zip(keras_arrays(), activation="relu"), "activation='relu'"),
        (keras_zip(keras_arrays(), go_backwards=True), "go_backwards=True"),
        (keras_zip(keras_arrays(), kind="ConvLSTM1D"), "has a layer of class ConvLSTM1D"),
        (b"PK\x03\x04 and more", "damaged, or not a file of Keras 3"),
        (b"\x89HDF\r\n\x1a\n and more", "damaged, or not a file of Keras 3"),
    ],
)
def test_a_keras_model_of_another_kind_is_refused(content, said, tmp_path, capfd):
    (tmp_path / "m.keras").write_bytes(content)
    (tmp_path / "v.txt").write_text("abcde")
    line = [tmp_path / "m.keras", "--from=keras", f"--vocabulary={tmp_path}/v.txt"]
    assert said in refused(*line, f"--out={tmp_path}/run", capfd=capfd)


def layer_of(kind: str, *reads: str, calls: int = 1, name: str = "", **fields: object) -> dict:
    """A layer in the config of a functional model; it reads outputs `LAYER` or `LAYER:NUMBER`."""
    tensors = [tensor.partition(":") for tensor in reads]
    history = [{"config": {"keras_history": [n, 0, int(i or 0)]}} for n, _, i in tensors]
    call = {"args": history[:1], "kwargs": {"mask": None, "initial_state": history[1:]}}
    nodes = [call] * (calls if reads else 0)
    return {"class_name": kind, "name": name or kind, "config": fields, "inbound_nodes": nodes}


def functional(*layers: dict) -> dict:
    return {"layers": [layer_of("InputLayer"), layer_of("InputLayer", name="state"), *layers]}


CHAIN = (
    layer_of("Embedding", "InputLayer"),
    layer_of("GRU", "Embedding", "state"),
    layer_of("Dense", "GRU", activation="softmax"),
)


@pytest.mark.parametrize("nested", [False, True])
def test_a_functional_model_whose_layers_are_a_chain_is_checked(nested, tmp_path, capfd):
    config = functional(*CHAIN)
    if nested:
        config = {"layers": [{"class_name": "Functional", "config": config}]}
    (tmp_path / "m.keras").write_bytes(keras_archive(keras_arrays(), config))
    (tmp_path / "v.txt").write_text("abcde")
    flags = ["--from=keras", f"--vocabulary={tmp_path}/v.txt", f"--out={tmp_path}/run"]
    assert main(["convert", str(tmp_path / "m.keras"), *flags]) == 0
    assert "its layers have reset_after" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (
            (CHAIN[0], layer_of("GRU", "Embedding", calls=2), CHAIN[2]),
            "the layer GRU must read the layer before it",
        ),
        ((*CHAIN[:2], layer_of("Dense", "Embedding")), "the layer Dense must read"),
        ((*CHAIN[:2], layer_of("Dense", "GRU:1")), "the layer Dense must read"),
        (
            (*CHAIN[:2], layer_of("GRU", "Embedding", "GRU:1", name="decoder"), CHAIN[2]),
            "the layer decoder must read the layer before it",
        ),
        ((layer_of("Embedding", "InputLayer", mask_zero=True), *CHAIN[1:]), "mask_zero=True"),
        ((*CHAIN, layer_of("Softmax", "Dense")), "a softmax, of the class Dense, comes before"),
        ((*CHAIN[:2], layer_of("Softmax", "GRU"), layer_of("Dense", "Softmax")), "class Softmax"),
        ((*CHAIN[:2], layer_of("Dense", "GRU"), layer_of("Softmax", "Dense", axis=1)), "axis=1"),
    ],
    ids=["shared", "branch", "state", "decoder", "mask", "twice", "between", "over time"],
)
def test_a_functional_model_of_another_kind_is_refused(layers, said, tmp_path, capfd):
    (tmp_path / "m.keras").write_bytes(keras_archive(keras_arrays(), functional(*layers)))
    (tmp_path / "v.txt").write_text("abcde")
    line = [tmp_path / "m.keras", "--from=keras", f"--vocabulary={tmp_path}/v.txt"]
    assert said in refused(*line, f"--out={tmp_path}/run", capfd=capfd)


@pytest.mark.parametrize("archived", [False, True])
def test_a_keras_file_with_an_optimizer_is_read(archived, tmp_path):
    (tmp_path / "m").write_bytes((keras_zip if archived else h5)(keras_arrays()))
    (tmp_path / "v.txt").write_text("abcde")
    convert(tmp_path / "m", "keras", tmp_path / "v.txt", tmp_path / "run")
    assert load_trained(tmp_path / "run", which="best").config.model == ModelConfig(
        cell="gru", hidden=4, embed=2
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (keras_zip(keras_arrays()), "its layers have reset_after"),
        (h5(keras_arrays()), "assumed, as the file does not say it: reset_after"),
        (keras_archive(keras_arrays(), {"name": "mine"}), "assumed, as the file does not say it"),
    ],
    ids=["sequential", "weights alone", "a class of the user"],
)
def test_layers_are_said_to_be_checked_only_where_the_file_describes_them(
    content, said, tmp_path, capfd
):
    (tmp_path / "m.keras").write_bytes(content)
    (tmp_path / "v.txt").write_text("abcde")
    flags = ["--from=keras", f"--vocabulary={tmp_path}/v.txt", f"--out={tmp_path}/run"]
    assert main(["convert", str(tmp_path / "m.keras"), *flags]) == 0
    assert said in capfd.readouterr().err


def test_a_link_in_an_hdf5_file_is_not_followed(tmp_path, capfd):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "other.h5").write_bytes(h5(keras_arrays()))
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["layers"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/layers")
    (tmp_path / "v.txt").write_text("abcde")
    line = [tmp_path / "m.h5", "--from=keras", f"--vocabulary={tmp_path}/v.txt"]
    assert "is a link" in refused(*line, f"--out={tmp_path}/run", capfd=capfd)


def test_a_group_that_contains_itself_is_refused(tmp_path, capfd):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "m.h5", "w") as file:
        for name in "ab":
            file[name] = file["/"]
    (tmp_path / "v.txt").write_text("abcde")
    line = [tmp_path / "m.h5", "--from=keras", f"--vocabulary={tmp_path}/v.txt"]
    assert "10000 groups and arrays" in refused(*line, f"--out={tmp_path}/run", capfd=capfd)


# Damaged and hostile files


@pytest.mark.parametrize("source", [TORCH, KERAS], ids=["torch", "keras"])
def test_a_cut_file_is_refused(source, tmp_path, capfd):
    export_model(trained_like(MODELS["gru-1-embed"]), tmp_path / "out", format=source[0])
    whole = (tmp_path / "out" / source[1]).read_bytes()
    line = [tmp_path / "cut", f"--from={source[0]}", f"--vocabulary={tmp_path}/out/vocabulary.json"]
    for size in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut").write_bytes(whole[:size])
        assert f"{tmp_path}/cut" in refused(*line, f"--out={tmp_path}/run", capfd=capfd)


def test_a_missing_file_and_a_folder_are_refused(tmp_path, capfd):
    (tmp_path / "v.txt").write_text("abcde")
    line = ["--from=torch", f"--vocabulary={tmp_path}/v.txt", f"--out={tmp_path}/run"]
    assert "No such file" in refused(tmp_path / "none.safetensors", *line, capfd=capfd)
    assert "a folder" in refused(tmp_path, *line, capfd=capfd)


@pytest.mark.parametrize("name", ["file/run", "a[b"])
def test_an_error_about_the_folder_to_write_names_no_flag_of_other_commands(name, tmp_path, capfd):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "m.safetensors").write_bytes(safetensors(state_dict(), {}))
    (tmp_path / "v.txt").write_text("abcde")
    line = [tmp_path / "m.safetensors", "--from=torch", f"--vocabulary={tmp_path}/v.txt"]
    said = refused(*line, f"--out={tmp_path}/{name}", capfd=capfd)
    assert name.partition("/")[0] in said
    assert "--workdir" not in said


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x80\x02\x8a\n"], ids=["zip", "pickle"])
def test_a_file_of_torch_save_is_known_by_its_content(start, tmp_path, capfd):
    (tmp_path / "best.pth.tar").write_bytes(start + b" and more")
    (tmp_path / "v.txt").write_text("abcde")
    line = [tmp_path / "best.pth.tar", "--from=torch", f"--vocabulary={tmp_path}/v.txt"]
    said = refused(*line, f"--out={tmp_path}/run", capfd=capfd)
    assert "only torch reads this format" in said or "not a state dict" in said


def test_a_pickle_is_not_run(tmp_path, capfd, monkeypatch):
    """With torch or without, nothing in the file is executed."""
    ran = tmp_path / "ran"
    monkeypatch.setenv("RAN", str(ran))
    pickled = b"cos\nsystem\n(S'touch $RAN'\ntR."
    (tmp_path / "m.pt").write_bytes(pickled)
    (tmp_path / "v.txt").write_text("abcde")
    line = [tmp_path / "m.pt", "--from=torch", f"--vocabulary={tmp_path}/v.txt"]
    said = refused(*line, f"--out={tmp_path}/run", capfd=capfd)
    assert "only torch reads this format" in said or "not a state dict" in said
    assert not ran.exists()


def test_the_vocabulary_is_that_of_charjax(tmp_path):
    vocab = Vocab.from_text("abc", order="sorted", unit="byte", unk=True, boundary=True)
    content = json.dumps(vocab.to_json() | {"start": 3})
    (tmp_path / "v.json").write_text(content, encoding="utf-8-sig")  # with a byte order mark
    assert read_vocabulary(tmp_path / "v.json", 5).vocab == vocab
