"""The check of shapes, which `make shapes` switches on, sees a wrong one."""

import os
import subprocess
import sys
from pathlib import Path

CODE = """
import conftest, jaxtyping, torch
from kpops.linalg.probes import dots
dots(torch.zeros(2, 3), torch.ones(2, 3))
try:
    dots(torch.zeros(2, 3), torch.ones(2, 4))
except jaxtyping.TypeCheckError as error:
    print("refused", "dots" in str(error))
"""


def test_a_wrong_shape_is_refused():
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "KPOPS_CHECK_SHAPES": "1", "PYTHONPATH": path}
    done = subprocess.check_output([sys.executable, "-c", CODE], env=env, text=True)
    assert done == "refused True\n"
