"""Export as one C99 file with int8 weights, made from the template `model.c`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator

import numpy as np

from charjax.config import CELL_SIZES
from charjax.data.vocab import Vocab
from charjax.export.files import template
from charjax.export.quantized import QuantizedModel, quantize_model
from charjax.inference.load import TrainedModel

_WIDTH = 100  # characters of a line, about

_logger = logging.getLogger(__name__)


def c_file(trained: TrainedModel) -> bytes:
    """The C file. Logs the flash, memory and arithmetic that it needs.

    Raises:
      InputError: a parameter is not finite.
    """
    model, vocab = quantize_model(trained), trained.vocab
    _logger.info("%s", _resources(model, vocab))
    config = model.config
    return template(
        "model.c",
        step=f"{trained.step:,}",
        cell=config.cell.upper(),
        layers=config.layers,
        hidden=config.hidden,
        gates=CELL_SIZES[config.cell].gates,
        tokens=len(vocab),
        sampled=len(vocab) - vocab.unk,  # [UNK], the last token, is never sampled
        characters=len(vocab.characters),
        start=vocab.start,
        options="".join(_options(trained, model)),
        capitals="\n".join(_capitals(trained)),
        arrays="\n".join(_arrays(model, vocab)),
    ).encode()


def _options(trained: TrainedModel, model: QuantizedModel) -> Iterator[str]:
    """The definitions that only some models have."""
    vocab = trained.vocab
    if model.config.embed:
        yield f"#define CHARJAX_EMBED {model.config.embed}\n"
    if vocab.boundary_id is not None:
        yield f"#define CHARJAX_BOUNDARY {vocab.boundary_id}\n"
    if vocab.unit == "byte":
        yield "#define CHARJAX_BYTES\n"
    if trained.run.reading.newlines == "unix":
        yield "#define CHARJAX_UNIX_NEWLINES\n"


def _capitals(trained: TrainedModel) -> Iterator[str]:
    """Of a model of text in lower case, the capitals and the characters that stand for them.

    Without U+0130, which two characters stand for, and capital sigma, which one of two stands for.
    """
    vocab, known = trained.vocab, frozenset(trained.vocab.characters)
    points = 128 if vocab.unit == "byte" else sys.maxunicode + 1
    for point in range(points if trained.run.reading.lowercase else 0):
        capital, small = chr(point), chr(point).lower()
        if capital not in (small, "\u03a3") and small in known:
            yield f"  {{{point}, {ord(small)}}},"


def _arrays(model: QuantizedModel, vocab: Vocab) -> Iterator[str]:
    """The C definitions of all arrays, and of the structs that point to them."""
    yield _array("uint32_t characters", [str(ord(c)) for c in vocab.characters])
    tables = {"embedding"} if model.config.embed else {"layer_0.kernel"}
    for name, kernel in model.kernels.items():
        integers = kernel.integers if name in tables else kernel.integers.T
        yield _array(f"int8_t {_id(name)}_q", [str(q) for q in integers.ravel()])
        yield _array(f"float {_id(name)}_scales", map(_power_of_two, kernel.scales))
    for name, bias in model.biases.items():
        yield _array(f"float {_id(name)}", map(_decimal, bias))
    for name in model.kernels:
        if not name.startswith("layer_"):
            yield f"static const kernel_t {name} = {_kernel(name)};"
    yield "static const layer_t layers[CHARJAX_LAYERS] = {"
    for i in range(model.config.layers):
        layer = f"layer_{i}"
        candidate = f"{layer}.recurrent.bias"
        fields = (
            _kernel(f"{layer}.kernel"),
            _kernel(f"{layer}.recurrent.kernel"),
            _id(f"{layer}.bias"),
            _id(candidate) if candidate in model.biases else "NULL",
        )
        yield f"  {{{', '.join(fields)}}},"
    yield "};"


def _array(declaration: str, values: Iterable[str]) -> str:
    """The C definition of an array, in lines of at most `_WIDTH` characters."""
    lines, line = [], ""
    for value in values:
        if len(line) + len(value) >= _WIDTH:
            lines.append(line)
            line = ""
        line += value + ","
    return f"static const {declaration}[] = {{\n" + "\n".join([*lines, line]) + "\n};"


def _kernel(name: str) -> str:
    return f"{{{_id(name)}_q, {_id(name)}_scales}}"


def _id(name: str) -> str:
    return name.replace(".", "_")


def _power_of_two(scale: np.floating) -> str:
    return f"0x1p{int(np.log2(scale))}f" if scale else "0"  # 0: below the smallest float32


def _decimal(value: np.floating) -> str:
    """A float literal that reads back as the same float32."""
    return f"{float(value):.9e}f"


def _resources(model: QuantizedModel, vocab: Vocab) -> str:
    """The message about bytes of flash and memory, and arithmetic per character."""
    config = model.config
    weights = sum(kernel.integers.size for kernel in model.kernels.values())
    floats = sum(kernel.scales.size for kernel in model.kernels.values())
    floats += sum(bias.size for bias in model.biases.values()) + len(vocab.characters)
    gates = 2 * CELL_SIZES[config.cell].gates * config.hidden
    state = CELL_SIZES[config.cell].states * config.layers * config.hidden + gates + len(vocab) + 3
    rows = model.kernels["embedding" if config.embed else "layer_0.kernel"].integers
    multiplications = weights - rows.size + rows.shape[1]
    return (
        f"flash: {weights + 4 * floats:,} bytes of arrays, and about 4,000 of code; memory: "
        f"{4 * state:,} bytes; {multiplications:,} multiply-adds a character"
    )
