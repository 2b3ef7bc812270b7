"""Writes text with a model that `charjax export` wrote, without charjax.

python examples/generate_exported.py FOLDER PROMPT NUM_CHARS TEMPERATURE SEED

PROMPT must be as the model's text was read; the folder's README.md says how.
"""

import json
import sys
from pathlib import Path

import jax.export
import numpy as np

folder, prompt, num_chars, temperature, seed = Path(sys.argv[1]), *sys.argv[2:]
vocabulary = json.loads((folder / "vocabulary.json").read_text("utf-8"))
characters = vocabulary["symbols"]
encoding = "latin-1" if vocabulary["unit"] == "byte" else "utf-8"  # byte b is character U+00b
step = jax.jit(jax.export.deserialize((folder / "generator.jax").read_bytes()).call)
carry = tuple(np.tile(row, (8, 1)) for row in np.load(folder / "start.npz").values())
root = jax.random.fold_in(jax.random.key(int(seed)), 2)  # 2: the sampling stream
sequence_keys = jax.vmap(jax.random.fold_in, (None, 0))(root, np.arange(8))
fold_in_all = jax.vmap(jax.random.fold_in, (0, None))
keys_at = jax.jit(lambda p: jax.random.key_data(fold_in_all(sequence_keys, p)))

text = prompt.encode().decode(encoding)
ids = [characters.index(c) if c in characters else sys.exit(f"{c!a} is unknown") for c in text]
if not ids or "boundary" in vocabulary:
    ids.insert(0, vocabulary["start"])
tokens = np.full(8, ids[0], np.int32)
temperature = np.float32(min(float(temperature), 1e30))  # times noise it stays in float32
for position in range(1 - len(ids), int(num_chars)):
    tokens, carry = step(tokens, carry, keys_at(max(position, 0)), temperature)
    if position < 0:  # still reading the prompt: its characters take the place of the model's
        tokens = np.full(8, ids[position], np.int32)
    elif int(tokens[0]) == len(characters):  # the document boundary
        break
    else:
        text += characters[int(tokens[0])]
sys.stdout.buffer.write(text.encode(encoding))
