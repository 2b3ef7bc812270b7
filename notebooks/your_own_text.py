# %% [markdown]
# # charjax: your own text
#
# From a text file to a model in one line. charjax chooses the model and the length of training for the text, the
# machine, and the minutes that you give it.

# %% [markdown]
# ## Install
#
# `SOURCE` is the folder of charjax; `..` where this notebook is in its `notebooks/` folder. On Colab, upload that folder
# first and name it here, such as `/content/charjax`; for a GPU, `/content/charjax[cuda12]`.

# %%
import importlib.util
import subprocess
import sys

SOURCE = ".."
if importlib.util.find_spec("charjax") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", SOURCE], check=True)

# %% [markdown]
# ## The device

# %%
import jax

for device in jax.devices():
    print(f"{device.platform}: {device.device_kind}")

# %% [markdown]
# ## The text
#
# Put the path of your text here: a file, a folder, or a pattern such as `texts/**/*.txt`. Compressed files are read too.
# A list with one item per line, such as names, is recognized: each line is a document then. Without a text of yours,
# this cell writes one to try: a part of Python's language reference.

# %%
from pathlib import Path
from pydoc_data.topics import topics

TEXT = "runs/story.txt"
MINUTES = 2

if TEXT == "runs/story.txt" and not Path(TEXT).exists():
    Path("runs").mkdir(exist_ok=True)
    Path(TEXT).write_text("\n".join(topics[name] for name in sorted(topics)[:30]), encoding="utf-8")

# %% [markdown]
# ## Train
#
# This is the command `charjax train TEXT --minutes=M`, run in this process so that its picture is drawn here. Three
# lines say what was chosen and why. Interrupt the cell whenever you like: the run is saved, and the same cell goes on
# from there.

# %%
from charjax.cli.main import main

RUN = Path("runs/your_own_text")
no_samples = "--config.sample.num_chars=0"  # while it trains; see below
exit_code = main(["train", TEXT, f"--minutes={MINUTES}", f"--workdir={RUN}", no_samples])

# %% [markdown]
# ## Write
#
# A prompt may only have characters that are in your text. Change it, the temperature or the seed, and run the cell again.

# %%
from charjax import Sampling, load_trained, sample_texts

PROMPT, NUM_CHARS, SEED = "The ", 300, 1

assert exit_code == 0, "training ended early; its last line says why"
trained = load_trained(RUN, which="best")
for temperature in (0.4, 0.7, 1.0):
    sampling = Sampling(temperature=temperature, seed=SEED)
    model, params, vocab = trained.config.model, trained.params, trained.vocab
    (text,) = sample_texts(
        model, params, vocab, PROMPT, num_chars=NUM_CHARS, num_samples=1, sampling=sampling
    )
    print(f"--- temperature {temperature} ---\n{PROMPT}{text}\n")

# %% [markdown]
# ## Score
#
# The loss on the part of your text that the model has not been trained on, and what it means: with `b` bits per
# byte, a compressor that uses this model needs `b / 8` of the size.

# %%
from charjax.inference.scoring.score import read_part, score_text

result = score_text(trained, read_part(trained, "val"))
print(f"{result.nats_per_char:.4f} nats, {result.bits_per_char:.4f} bits per character")
print(f"{result.chars:,} characters, compressed to {result.bits_per_byte / 8:.0%} of their size")

# %% [markdown]
# ## Take it with you
#
# One page that runs the model in any browser, without a server. `charjax export --help` lists the other formats: ONNX,
# torch, Keras, numpy, C and more.

# %%
from charjax.export.api import export_model

PAGE = Path("runs/your_own_text.html")
export_model(trained, PAGE, format="html")
print(f"{PAGE}: {PAGE.stat().st_size / 1e6:.1f} MB; open it in a browser")
