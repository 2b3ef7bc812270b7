"""Samples text from a character model of charjax. Needs numpy alone.

    python generate.py --prompt='ROMEO:' --num_chars=300 --temperature=0.8 --seed=1

It samples the same text as `charjax sample` with the same options and float32 weights.
"""

import argparse
import json
import math
import string
import sys
import unicodedata
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
SAMPLE_STREAM = 2  # charjax's random stream for samples


def read_safetensors(path):
    """The arrays and the metadata: 8 bytes of header length, JSON header, raw float32."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    metadata = header.pop("__metadata__")
    arrays = {}
    for name, entry in header.items():
        first, last = (start + offset for offset in entry["data_offsets"])
        arrays[name] = np.frombuffer(data[first:last], "<f4").reshape(entry["shape"])
    return arrays, json.loads(metadata["config"])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gru(x, h, carry):
    """Gates: reset, update, candidate. The reset gate scales the candidate's hidden gate."""
    (before,), (x_r, x_z, x_n), (h_r, h_z, h_n) = carry, x, h
    r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
    n = np.tanh(x_n + r * h_n)
    return (n + z * (before - n),)


def lstm(x, h, carry):
    """Gates: input, forget, candidate, output. The carry is (h, c)."""
    i, f, g, o = (x_gate + h_gate for x_gate, h_gate in zip(x, h))
    c = sigmoid(f) * carry[1] + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def rnn(x, h, carry):
    """One gate."""
    return (np.tanh(x[0] + h[0]),)


CELLS = {"gru": (gru, 3, 1), "lstm": (lstm, 4, 2), "rnn": (rnn, 1, 1)}  # function, gates, states


class Model:
    """Reads one token after the other; `logits` are those of the next one."""

    def __init__(self):
        self.vocabulary = json.loads((FOLDER / "vocabulary.json").read_text("utf-8"))
        self.weights, self.config = read_safetensors(FOLDER / "model.safetensors")
        sizes = self.config["model"]
        self.hidden = sizes["hidden"]
        self.cell, self.gates, states = CELLS[sizes["cell"]]
        zeros = np.zeros(self.hidden, np.float32)
        self.carries = [(zeros,) * states for _ in range(sizes["layers"])]

    def read(self, token):
        w = self.weights
        x = w["embedding"][token] if "embedding" in w else None  # None: one-hot
        for layer, carry in enumerate(self.carries):
            kernel = w[f"layer_{layer}.kernel"]
            igates = (kernel[token] if x is None else x @ kernel) + w[f"layer_{layer}.bias"]
            hgates = carry[0] @ w[f"layer_{layer}.recurrent.kernel"]
            if f"layer_{layer}.recurrent.bias" in w:  # of the candidate, the last gate
                hgates[-self.hidden :] += w[f"layer_{layer}.recurrent.bias"]
            split = np.split(igates, self.gates), np.split(hgates, self.gates)
            self.carries[layer] = self.cell(*split, carry)
            x = self.carries[layer][0]
        self.logits = x @ w["output_kernel"] + w["output_bias"]

    def units(self, prompt):
        """The characters (bytes as latin-1) of a prompt, read as the model's text was."""
        prompt = prompt.removeprefix("\ufeff")  # the byte order mark
        if self.config["data"]["newlines"] == "unix":
            prompt = prompt.replace("\r\n", "\n").replace("\r", "\n")
        is_bytes = self.vocabulary["unit"] == "byte"
        if self.config["data"]["lowercase"]:  # of bytes, those in ASCII
            prompt = prompt.translate(ASCII_LOWER) if is_bytes else prompt.lower()
        forms = [prompt, *(unicodedata.normalize(form, prompt) for form in ("NFC", "NFD"))]
        if is_bytes:
            forms = [form.encode("utf-8", "surrogateescape").decode("latin-1") for form in forms]
        return min(forms, key=lambda units: len(self.unknown(units)))  # the first of equals

    def unknown(self, units):
        return sorted(set(units) - set(self.vocabulary["symbols"]))


def threefry(key, high, low):
    """Threefry-2x32 with 20 rounds (Salmon et al. 2011), as JAX has it."""
    keys = np.array([*key, key[0] ^ key[1] ^ 0x1BD11BDA], np.uint32)
    x, y = np.uint32(high) + keys[0], np.uint32(low) + keys[1]
    for block in range(5):
        for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[block % 2]:
            x = x + y
            y = (y << np.uint32(rotation) | y >> np.uint32(32 - rotation)) ^ x
        x = x + keys[(block + 1) % 3]
        y = y + keys[(block + 2) % 3] + np.uint32(block + 1)
    return x, y


def fold_in(key, number):
    x, y = threefry(key, np.zeros(1, np.uint32), np.array([number], np.uint32))
    return x[0], y[0]


def gumbel(key, size):
    """Standard Gumbel noise: -log(-log(u)), u uniform."""
    x, y = threefry(key, np.zeros(size, np.uint32), np.arange(size, dtype=np.uint32))
    tiny = np.finfo(np.float32).tiny
    u = ((x ^ y) >> np.uint32(9) | np.uint32(0x3F800000)).view(np.float32) - np.float32(1)
    u = np.maximum(tiny, u * (np.float32(1) - tiny) + tiny)
    return -np.log(-np.log(u))


def generate(model, prompt, num_chars, temperature, seed):
    """The ids of the sample. `prompt` has at least one id."""
    characters = len(model.vocabulary["symbols"])
    boundary = characters if model.vocabulary.get("boundary") else None  # the end of a document
    size = characters + (boundary is not None)  # without [UNK], which is never sampled
    key = fold_in(fold_in((np.uint32(0), np.uint32(seed)), SAMPLE_STREAM), 0)  # of sample 0
    for token in prompt:
        model.read(token)
    for position in range(num_chars):
        noise = gumbel(fold_in(key, position), len(model.logits))
        token = int(np.argmax((model.logits + np.float32(min(temperature, 1e30)) * noise)[:size]))
        if token == boundary:
            return
        yield token
        model.read(token)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt", default="")
    parser.add_argument("--num_chars", type=int, default=500)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.num_chars < 0 or not 0 <= args.temperature < math.inf or not 0 <= args.seed < 2**32:
        parser.error("--num_chars and --temperature must be 0 or more, --seed from 0 to 2**32 - 1")
    model = Model()
    symbols, is_bytes = model.vocabulary["symbols"], model.vocabulary["unit"] == "byte"
    units = model.units(args.prompt)
    if unknown := model.unknown(units):
        name = "byte 0x{:02X}" if is_bytes else "U+{:04X}"
        parser.error("not in the vocabulary: " + ", ".join(name.format(ord(c)) for c in unknown))
    prompt = [symbols.index(c) for c in units]
    if not prompt or model.vocabulary.get("boundary"):
        prompt = [model.vocabulary["start"], *prompt]
    ids = generate(model, prompt, args.num_chars, args.temperature, args.seed)
    text = units + "".join(symbols[i] for i in ids)
    sys.stdout.buffer.write(text.encode("latin-1" if is_bytes else "utf-8"))


if __name__ == "__main__":
    np.seterr(over="ignore")  # uint32 arithmetic wraps around
    main()
