"""Runs exports as their users do, without charjax."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.environment import with_devices

EXAMPLE = Path(__file__).parents[2] / "examples" / "generate_exported.py"
needs_node = pytest.mark.skipif(not shutil.which("node"), reason="there is no node")
needs_cc = pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-Os")

HARNESS = """
const fs = require("fs"), vm = require("vm");
const html = fs.readFileSync(process.argv[1], "utf8");
for (const [, script] of html.matchAll(/<script>([^]*?)<\\/script>/g)) vm.runInThisContext(script);
const weights = html.match(/id="weights">([^<]*)</)[1];
globalThis.given = JSON.parse(fs.readFileSync(0, "utf8"));
globalThis.bytes = new Uint8Array(Buffer.from(weights, "base64"));
vm.runInThisContext(`(async () => {
  const model = new CharModel(bytes), page = localModel(model), state = model.zeroState();
  const { title, description } = await page.load();
  const result = { title, description, texts: [], nats: [], tops: [] };
  for (const { num_chars, top_k, top_p, ...given_ } of given.options) {
    let text = given_.prompt;
    const nats = [], tops = [];
    const settings = { count: num_chars, samples: 1, topK: top_k, topP: top_p, ...given_ };
    for await (const pieces of page.write(settings, { aborted: false })) {
      for (const piece of pieces) {
        text += piece.text;
        nats.push(piece.nats);
        tops.push([piece.text, piece.top]);
      }
    }
    result.texts.push(text);
    result.nats.push(nats);
    result.tops.push(tops);
  }
  result.logits = given.tokens.map((token) => Array.from(model.read(state, token)));
  result.unknown = given.unknown.map((text) => page.unknown(text));
  return JSON.stringify(result);
})()`).then((result) => process.stdout.write(result));
"""


def run_script(folder: Path, **options) -> subprocess.CompletedProcess:
    """The numpy script, in a process without jax and charjax."""
    blocked = "; ".join(f"sys.modules['{name}'] = None" for name in ("jax", "charjax"))
    program = f"import sys, runpy; {blocked}; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    flags = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-c", program, str(folder / "generate.py"), *flags]
    return subprocess.run(command, capture_output=True, check=False, cwd=folder)


def run_example(
    folder: Path, *, prompt: str, num_chars: int, temperature: float, seed: int
) -> subprocess.CompletedProcess:
    """The example that runs a program, in a process without charjax."""
    program = "import sys, runpy; sys.modules['charjax'] = None; runpy.run_path(sys.argv.pop(1))"
    values = map(str, (num_chars, temperature, seed))
    command = [sys.executable, "-c", program, str(EXAMPLE), str(folder), prompt, *values]
    return subprocess.run(command, env=with_devices(1), capture_output=True, check=False)


def run_page(path: Path, *, options=(), tokens=(), unknown=()) -> dict:
    """What the scripts of an exported page compute, in node."""
    given = {"options": list(options), "tokens": list(tokens), "unknown": list(unknown)}
    done = subprocess.run(
        ["node", "-e", HARNESS, str(path)],
        input=json.dumps(given).encode(),
        capture_output=True,
        check=True,
    )
    assert not done.stderr
    return json.loads(done.stdout)


def compile_c(source: Path, out: Path, *flags: str) -> None:
    command = ["cc", *STRICT, *flags, str(source), "-o", str(out), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
