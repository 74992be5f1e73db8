"""CuPy arrays on a GPU that is not the current one, by a CuPy that only tells which GPU is."""

import sys
from contextlib import contextmanager
from types import ModuleType

import numpy as np
import pytest
import torch
import xarray as xr

from kpops.arrays import as_cupy, as_tensor
from kpops.labels import Space, enter
from kpops.operators.dense import DenseOperator


class Gpus(ModuleType):
    """CuPy without arithmetic, and the GPU that is current for it and for torch."""

    def __init__(self):
        super().__init__("cupy")
        self.cuda, self.current, self.exchanged = self, {"cupy": 0, "torch": 0}, []

        class ndarray:
            def __init__(self, values, gpu):
                self.values, self.device = values, Gpu(gpu)
                self.shape, self.ndim, self.dtype = values.shape, values.ndim, values.dtype

            def __dlpack__(array, **options):
                self.exchanged.append((array.device.id, dict(self.current)))
                return array.values.__dlpack__()

            def __dlpack_device__(array):
                return array.values.__dlpack_device__()

            def __array_function__(self, *_):
                raise TypeError("no arithmetic")

            __array_ufunc__ = __array_function__

            def reshape(array, *shape):
                self.exchanged.append((array.device.id, dict(self.current)))
                return array

        class Gpu:
            def __init__(gpu, id):
                gpu.id, gpu.context = id, self.makes("cupy", id)

            def __enter__(gpu):
                gpu.context.__enter__()

            def __exit__(gpu, *error):
                gpu.context.__exit__(*error)

        ndarray.__module__ = "cupy"
        self.ndarray, self.Device = ndarray, Gpu

    @contextmanager
    def makes(self, who, gpu):
        before, self.current[who] = self.current[who], gpu
        try:
            yield
        finally:
            self.current[who] = before

    def from_dlpack(self, tensor):
        self.exchanged.append((tensor.device.index, dict(self.current)))
        return self.ndarray(np.zeros(tensor.shape), tensor.device.index)


@pytest.fixture
def gpus(monkeypatch):
    gpus = Gpus()
    monkeypatch.setitem(sys.modules, "cupy", gpus)
    monkeypatch.setattr(torch.cuda, "device", lambda gpu: gpus.makes("torch", gpu))
    yield gpus
    assert gpus.current == {"cupy": 0, "torch": 0}


def test_arrays_come_in_and_go_out_where_they_are(gpus):
    array = gpus.ndarray(np.arange(3.0), 1)
    assert as_tensor(array, "q").tolist() == [0, 1, 2]

    class OnSecond:
        device, shape = torch.device("cuda:1"), (3,)

        def contiguous(self):
            return self

    assert as_cupy(OnSecond()).device.id == 1
    assert gpus.exchanged == [(1, {"cupy": 1, "torch": 1})] * 2


@pytest.mark.parametrize("labelled", [False, True])
def test_arrays_of_another_gpu_are_refused_and_not_copied(gpus, labelled):
    space, q = Space(("unit",), (3,)), gpus.ndarray(np.zeros(3), 1)
    q = xr.DataArray(q, dims="unit") if labelled else q
    with pytest.raises(ValueError, match=r"q is on cuda:1, the operator on cuda:0: copy q there"):
        enter(q, space, torch.float64, torch.device("cuda:0"))
    with pytest.raises(ValueError, match="q is a CuPy array, the operator on cpu"):
        enter(q, space, torch.float64, torch.device("cpu"))
    assert gpus.exchanged == []


def test_exported_operators_act_on_their_gpu(gpus, monkeypatch):
    exports = ModuleType("cupyx.scipy.sparse.linalg")
    exports.LinearOperator = lambda shape, **actions: actions
    for name in ("cupyx", "cupyx.scipy", "cupyx.scipy.sparse"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, exports.__name__, exports)
    space = Space(("unit",), (3,))
    op = DenseOperator(torch.eye(3), space, space, symbol="A")
    op.device = torch.device("cuda:1")
    actions = op.to_cupy()
    elsewhere = gpus.ndarray(np.zeros(3), 0)
    for name in ("matvec", "rmatvec"):
        with pytest.raises(ValueError, match="q is on cuda:0, the operator on cuda:1"):
            actions[name](elsewhere)
    assert gpus.exchanged == [(0, {"cupy": 1, "torch": 1})] * 2
