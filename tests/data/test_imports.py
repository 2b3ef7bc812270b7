from __future__ import annotations

import subprocess
import sys


def test_the_data_package_does_not_import_jax():
    code = (
        "import sys\n"
        "from charjax.data import dataset\n"
        "sys.exit(', '.join(m for m in ('jax', 'flax', 'orbax') if m in sys.modules) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
