# %% [markdown]
# # charjax: quickstart
#
# Trains a small recurrent network that writes text character by character, in about a minute on two CPU cores.
# It needs no download: the text is the language reference that comes with Python.

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
#
# JAX takes a GPU or TPU where it finds one.

# %%
import jax

for device in jax.devices():
    print(f"{device.platform}: {device.device_kind}")

# %% [markdown]
# ## Train
#
# A config defines everything about a run; what is left out has a default. The picture below the cell is drawn anew
# while the run trains. Interrupt the cell whenever you like: the run is saved, and the same cell goes on from there.

# %%
from pathlib import Path

from charjax import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from charjax.config import SampleConfig
from charjax.train.loop import train

STEPS = 1500
RUN = Path("runs/quickstart")

config = Config(
    data=DataConfig(corpus="python_docs", batch_size=32, seq_len=64),
    model=ModelConfig(cell="gru", hidden=256, embed=64, dropout=0.1),
    optim=OptimConfig(name="adamw", learning_rate=4e-3, schedule="linear", warmup=0.1, ema=0.998),
    train=TrainConfig(max_steps=STEPS, eval_every=STEPS // 5, log_every=STEPS // 50),
    sample=SampleConfig(num_chars=0),  # no samples while it trains; see below
)
progress = train(config, RUN)

# %% [markdown]
# ## Write
#
# The temperature divides the logits: below 1 the model keeps to what is likely, above 1 it takes risks. The same seed
# gives the same text.

# %%
from charjax import Sampling, load_trained, sample_texts

trained = load_trained(RUN, which="best")


def write(prompt, temperature, num_chars=300, seed=1):
    sampling = Sampling(temperature=temperature, seed=seed)
    model, params, vocab = trained.config.model, trained.params, trained.vocab
    (text,) = sample_texts(
        model, params, vocab, prompt, num_chars=num_chars, num_samples=1, sampling=sampling
    )
    return prompt + text


for temperature in (0.4, 0.7, 1.0):
    print(f"--- temperature {temperature} ---\n{write('The ', temperature)}\n")

# %% [markdown]
# ## Score
#
# How well does the model predict a text? In bits per character, fewer are better: a text like the one it has learnt
# costs less than other English, and far less than the same letters in disorder.

# %%
import random

from charjax import score

TEXTS = {
    "like the text": "The return value of the function is an object of the same class.",
    "other English": "It was a dark night, and nobody had seen the old man since supper.",
}
letters = list(TEXTS["like the text"])
random.Random(0).shuffle(letters)
TEXTS["letters in disorder"] = "".join(letters)
for name, text in TEXTS.items():
    result = score(trained.config.model, trained.params, trained.vocab.encode(text))
    print(f"{name:20} {result.bits_per_char:.2f} bits per character")

# %% [markdown]
# ## Take it with you
#
# One page that runs the model in any browser, without a server. `charjax export --help` lists the other formats: ONNX,
# torch, Keras, numpy, C and more.

# %%
from charjax.export.api import export_model

PAGE = Path("runs/quickstart.html")
export_model(trained, PAGE, format="html")
print(f"{PAGE}: {PAGE.stat().st_size / 1e6:.1f} MB; open it in a browser")
