"""The formats with int8 weights, html and c, against charjax with the dequantized weights."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import logging
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from charjax.config import ModelConfig
from charjax.data.vocab import Vocab
from charjax.errors import InputError
from charjax.export.api import export_model
from charjax.export.c import c_file
from charjax.export.quantized import quantize_model
from charjax.inference.load import TrainedModel
from charjax.model.cells import CELLS
from tests.export.runners import compile_c, needs_cc, needs_node, run_page
from tests.export.tiny import (
    HOT,
    MODELS,
    SAMPLES,
    dequantize_model,
    module_of,
    sampled,
    trained_like,
    with_boundary,
)
from tests.inference import scripted

SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
OPTIONS = [  # more than the sampler's chunk
    {"prompt": "the c", "num_chars": 300, "seed": seed, "temperature": temperature}
    for seed, temperature in (*SAMPLES, HOT)
]

NOT_UTF8 = (
    *(b"\xe9te", b"\xa0", b"t\xc3"),  # Latin-1, no first byte, cut
    *(b"\xc1\xa3", b"\xe0\x81\xa3", b"\xf0\x80\x81\xa3"),  # c in more bytes than it needs
    *(b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xfc\x80\x80\x80"),  # no characters of Unicode
)


@functools.cache
def variants() -> dict[str, TrainedModel]:
    """Each architecture, with each kind of vocabulary in turn."""
    models = [trained_like(model, unk=model.cell == "lstm") for model in MODELS.values()]
    models.append(trained_like(MODELS["gru-1-embed"], unit="byte", unk=True))
    models.append(with_boundary(trained_like(MODELS["gru-1-embed"])))
    models.append(trained_like(ModelConfig(hidden=12, embed=24)))
    return dict(zip(VARIANTS, models, strict=True))


VARIANTS = (*MODELS, "bytes", "documents", "folded")
TOKENS = tuple(np.random.default_rng(0).integers(0, 20, 50).tolist())
any_variant = pytest.mark.parametrize("name", VARIANTS)


class Expected(NamedTuple):
    """What generate.py computes with the dequantized weights of a model, as charjax does."""

    texts: list[bytes]
    logits: np.ndarray  # after each of TOKENS


@functools.cache
def expected(name: str) -> Expected:
    trained = variants()[name]
    with tempfile.TemporaryDirectory() as folder, np.errstate(over="ignore"):
        export_model(dequantize_model(trained), Path(folder, "numpy"), format="numpy")
        script = module_of(Path(folder, "numpy", "generate.py"))
        texts = [numpy_text(script, trained.vocab, **o) for o in OPTIONS]
        reader, logits = script.Model(), []
        for token in TOKENS:
            reader.read(token)
            logits.append(reader.logits)
    return Expected(texts, np.array(logits))


def numpy_text(
    script, vocab, *, prompt: str, num_chars: int, seed: int, temperature: float
) -> bytes:
    ids = vocab.encode(prompt).tolist()
    start = [vocab.start] if vocab.boundary else []
    ids += script.generate(script.Model(), start + ids, num_chars, temperature, seed)
    return vocab.decode(np.array(ids)).encode()


# The weights


def test_quantized_weights_are_within_half_a_step_and_exact_once_dequantized():
    trained = trained_like(MODELS["lstm-3-one_hot"])
    model, again = quantize_model(trained), quantize_model(dequantize_model(trained))
    for name, kernel in model.kernels.items():
        node = trained.params
        for key in name.split("."):
            node = node[key]
        error = np.abs(kernel.integers * kernel.scales - node)
        assert (error <= kernel.scales / 2).all()
        np.testing.assert_array_equal(
            again.kernels[name].integers * again.kernels[name].scales,
            kernel.integers * kernel.scales,
        )


def test_an_embedding_is_folded_into_the_kernel_where_that_is_smaller():
    small, large = variants()["gru-1-embed"], variants()["folded"]
    assert quantize_model(small).config.embed == 6
    folded = quantize_model(large)
    assert folded.config.embed == 0
    assert "embedding" not in folded.kernels
    kernel, scales = folded.kernels["layer_0.kernel"]
    table = large.params["embedding"] @ large.params["layer_0"]["kernel"]
    assert (np.abs(kernel * scales - table) <= scales * 0.501).all()


@pytest.mark.parametrize("format", ["html", "c"])
def test_weights_that_are_not_finite_are_refused(format, tmp_path):
    trained = trained_like(MODELS["gru-1-embed"])
    kernel = trained.params["output_kernel"] * np.float32(np.nan)
    trained = dataclasses.replace(trained, params=trained.params | {"output_kernel": kernel})
    with pytest.raises(InputError, match="output_kernel is not finite"):
        export_model(trained, tmp_path / "out", format=format)


def test_a_scale_below_the_smallest_float32_is_zero_in_c():
    trained = trained_like(MODELS["gru-1-embed"])
    kernel = trained.params["output_kernel"].copy()
    kernel[:, 3] *= np.float32(1e-36)
    trained = dataclasses.replace(trained, params=trained.params | {"output_kernel": kernel})
    scales = re.search(rb"output_kernel_scales\[\] = \{\n(.*)", c_file(trained))[1].split(b",")
    assert [i for i, scale in enumerate(scales) if scale == b"0"] == [3]


# html


@needs_node
@any_variant
def test_the_page_has_the_logits_and_the_text(name, tmp_path):
    export_model(variants()[name], tmp_path / "page.html", format="html")
    page, want = run_page(tmp_path / "page.html", options=OPTIONS, tokens=TOKENS), expected(name)
    assert [text.encode() for text in page["texts"]] == want.texts
    np.testing.assert_allclose(np.array(page["logits"]), want.logits, atol=1e-5)


@needs_node
def test_the_page_keeps_the_likeliest_as_the_command_does(tmp_path):
    trained = trained_like(MODELS["gru-1-embed"], unk=True)
    export_model(trained, tmp_path / "page.html", format="html")
    options = [
        OPTIONS[0] | {"num_chars": 200, "top_k": top_k, "top_p": top_p, "temperature": temperature}
        for top_k, top_p, temperature in (
            (3, 1.0, 1.5),
            (0, 0.6, 1.2),
            (10, 0.8, 0.9),
            (5, 0.5, 0.0),
        )
    ]
    texts = run_page(tmp_path / "page.html", options=options)["texts"]
    assert [t.encode() for t in texts] == [sampled(dequantize_model(trained), **o) for o in options]


@needs_node
@pytest.mark.parametrize("unk", [False, True])
def test_the_page_colours_by_the_models_loss(unk, tmp_path):
    trained = trained_like(MODELS["gru-1-embed"], unk=unk)
    export_model(trained, tmp_path / "page.html", format="html")
    page = run_page(tmp_path / "page.html", options=[OPTIONS[1] | {"num_chars": 40}])
    ids = trained.vocab.encode(page["texts"][0]).tolist()
    logits = np.array(run_page(tmp_path / "page.html", tokens=ids)["logits"])
    losses = np.log(np.exp(logits).sum(axis=1))[4:-1] - logits[np.arange(4, 44), ids[5:]]
    np.testing.assert_allclose(page["nats"][0], losses, atol=1e-6)


@needs_node
def test_the_page_shows_what_else_a_character_of_several_bytes_could_have_been(tmp_path):
    either = [1, 2, -50]  # a, or the first byte of é
    model = scripted.trained(
        scripted.chain([either, [-50, -50, 50], either]),
        "x",
        vocab=Vocab(("a", "\xc3", "\xa9"), "byte", False),
    )
    export_model(model, tmp_path / "page.html", format="html")
    options = {"prompt": "a", "num_chars": 40, "seed": 0, "temperature": 1.0}
    page = run_page(tmp_path / "page.html", options=[options])
    tops = dict(page["tops"][0])
    assert tops.keys() == {"a", "é"}
    for top in tops.values():
        assert top == [{"text": "a", "probability": pytest.approx(1 / (1 + np.e), abs=1e-6)}]


@needs_node
def test_the_page_writes_a_byte_order_mark_as_it_does_other_characters(tmp_path):
    vocab = Vocab(tuple("\ufeff".encode().decode("latin-1")), "byte", False)
    model = scripted.trained(scripted.cycle(3), "x", vocab=vocab)
    export_model(model, tmp_path / "page.html", format="html")
    options = {"prompt": "\ufeff" * 2, "num_chars": 6, "seed": 0, "temperature": 0}
    assert run_page(tmp_path / "page.html", options=[options])["texts"] == ["\ufeff" * 4]


@needs_node
def test_the_page_names_what_it_does_not_know(tmp_path):
    export_model(trained_like(MODELS["gru-1-embed"]), tmp_path / "page.html", format="html")
    found = run_page(tmp_path / "page.html", unknown=["the 😀e\u0301", "Zß"])["unknown"]
    assert found == [[], ["“Z” (U+005A)", "“ß” (U+00DF)"]]


def test_the_page_is_one_file_that_may_load_nothing(tmp_path):
    trained = trained_like(MODELS["gru-1-embed"])
    corpus = dataclasses.replace(trained.run.corpus, name="</script><b>")
    trained = scripted.changed(trained, corpus=corpus)
    export_model(trained, tmp_path / "page.html", format="html")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "{{" not in page.replace("${{", "")
    assert "default-src 'none'" in page
    assert "</script><b>" not in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:,)""", page)


# c


class Model:
    """An exported C file, compiled and loaded."""

    def __init__(self, trained: TrainedModel, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        export_model(trained, folder / "model.c", format="c")
        library = folder / "model.so"
        compile_c(folder / "model.c", library, "-shared", "-fPIC")
        config, self.vocab = trained.config.model, trained.vocab
        hidden = config.hidden * config.layers * CELLS[config.cell].states
        gates = 2 * config.hidden * CELLS[config.cell].gates
        fields = {"states": hidden, "gates": gates, "logits": len(self.vocab)}

        class State(ctypes.Structure):
            _fields_ = [
                *((name, ctypes.c_float * size) for name, size in fields.items()),
                ("key", ctypes.c_uint32 * 2),
                ("position", ctypes.c_uint32),
            ]

        self.library, self.state = ctypes.CDLL(str(library)), State()
        self.library.charjax_next.argtypes = [ctypes.c_void_p, ctypes.c_float]

    def reset(self, seed: int) -> None:
        self.library.charjax_reset(ctypes.byref(self.state), ctypes.c_uint32(seed))

    def feed(self, token: int) -> int:
        return self.library.charjax_feed(ctypes.byref(self.state), token)

    def text(self, prompt: str, num_chars: int, temperature: float, seed: int) -> bytes:
        self.reset(seed)
        ids = self.vocab.encode(prompt).tolist()
        if self.vocab.boundary:
            self.feed(self.vocab.start)
        for token in ids:
            assert self.feed(token) == 0
        for _ in range(num_chars):
            token = self.library.charjax_next(ctypes.byref(self.state), temperature)
            if token < 0:
                break
            ids.append(token)
            self.feed(token)
        return self.vocab.decode(np.array(ids)).encode()


@needs_cc
@any_variant
def test_the_c_file_has_the_logits_and_the_text(name, tmp_path):
    trained, want = variants()[name], expected(name)
    model = Model(trained, tmp_path / "c")
    assert [model.text(**o) for o in OPTIONS] == want.texts
    model.reset(0)
    for token, logits in zip(TOKENS, want.logits, strict=True):
        model.feed(token)
        np.testing.assert_allclose(np.array(model.state.logits), logits, atol=1e-5)
    assert model.feed(len(trained.vocab)) == model.feed(-1) == -1


@needs_cc
@pytest.mark.parametrize("name", ["lstm-3-one_hot", "bytes", "documents"])
def test_the_c_program_is_clean_under_the_sanitizers(name, tmp_path):
    trained = variants()[name]
    export_model(trained, tmp_path / "model.c", format="c")
    program = tmp_path / "model"
    (tmp_path / "empty.c").write_text("int main(void) { return 0; }")
    probe = ["cc", *SANITIZERS, str(tmp_path / "empty.c"), "-o", str(tmp_path / "empty")]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("the C compiler has no sanitizers")
    compile_c(tmp_path / "model.c", program, "-DCHARJAX_MAIN", *SANITIZERS)
    for options, text in zip(OPTIONS, expected(name).texts, strict=True):
        values = (options[key] for key in ("prompt", "num_chars", "temperature", "seed"))
        done = subprocess.run([program, *map(str, values)], capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.decode("utf-8", "replace").encode() == text
    done = subprocess.run([program, "Z€", "5", "1", "0"], capture_output=True, check=False)
    unknown = b"byte 0x5A" if name == "bytes" else b"U+005A"
    assert (done.returncode, done.stderr) == (2, b"not in the vocabulary: %s\n" % unknown)
    if name != "bytes":
        for invalid in NOT_UTF8:
            done = subprocess.run([program, invalid, "5", "1", "0"], capture_output=True)
            assert (done.returncode, done.stderr) == (2, b"the prompt is not UTF-8\n"), invalid
    for numbers in (
        "5 0,8 1",
        f"5 1 {2**32}",
        "5 1 -1",
        f"5 1 {1 - 2**64}",
        "5 -1 1",
        "5 nan 1",
        "5 inf 1",
        "-5 1 1",
        "5  1",
    ):
        wrong = [program, "a", *numbers.split(" ")]
        done = subprocess.run(wrong, capture_output=True, check=False)
        assert (done.returncode, done.stdout, done.stderr[:6]) == (2, b"", b"usage:")


@needs_cc
def test_the_c_file_needs_three_functions_and_the_flash_that_it_says(tmp_path, caplog):
    caplog.set_level(logging.INFO, "charjax")
    trained = trained_like(ModelConfig(cell="gru", hidden=128, embed=64))
    export_model(trained, tmp_path / "model.c", format="c")
    numbers = [int(n.replace(",", "")) for n in re.findall(r"[\d,]{3,}", caplog.messages[0])]
    arrays, _, memory, _ = numbers
    compile_c(tmp_path / "model.c", tmp_path / "model.o", "-c")
    names = subprocess.run(["nm", "-u", tmp_path / "model.o"], capture_output=True, check=True)
    assert names.stdout.split()[1::2] == [b"expf", b"logf", b"tanhf"]
    sizes = subprocess.run(["size", tmp_path / "model.o"], capture_output=True, check=True)
    text, data, bss = map(int, sizes.stdout.splitlines()[1].split()[:3])
    assert arrays < text + data < arrays + 4000
    assert text + data < 200_000
    assert bss == 0
    assert ctypes.sizeof(Model(trained, tmp_path / "c").state) == memory < 8000
