"""The first result of a process waits for no import but that of compiled code."""

import subprocess
import sys

CODE = """
import sys, torch, xarray, kpops

def lin_of(model):
    h0 = torch.ones(kpops.models.as_recurrence(model).state_size)
    mask = torch.arange(6) < torch.tensor([[6], [4], [5]])
    return kpops.linearize(model, torch.randn(3, 6, 2), h0=h0, mask=mask, readout=readout)

readout = torch.nn.Linear(4, 1)
models = [torch.nn.RNN(2, 4, batch_first=True), torch.nn.GRU(2, 4, 2, batch_first=True),
          torch.nn.LSTM(2, 4, batch_first=True), torch.nn.GRUCell(2, 4),
          kpops.models.LeakyCell(2, 4, alpha=0.5)]
before = set(sys.modules)
lins = [lin_of(model) for model in models]
print(sorted(set(sys.modules) - before))
for lin in lins:
    lin.flow @ torch.ones(lin.space.shape)
packages = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(packages & {"torch", "sympy", "matplotlib", "pandas", "scipy", "xarray", "zarr"}))
"""


def test_linearize_imports_nothing_and_the_first_flow_only_compiled_code():
    lines = subprocess.check_output([sys.executable, "-c", CODE], text=True).splitlines()
    assert lines == ["[]", "[]"]
