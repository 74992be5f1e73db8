"""An accelerator without one: tensors that say they are on a device, with numbers of the CPU.

`install` gives PyTorch a device named "simulated". What a GPU refuses, it refuses too: operands on
two devices, and a wait of the host for the device in the midst of a recorded loop. Waits and copies
to the device are counted by line of kpops; a block under `watched(forbidden=True)` may contain
none. A recorded loop is a tape of operations, replayed on the same memory.

It tells where code mixes devices and how often it waits. It tells nothing of speed, of streams, or
of the kernels of a GPU.
"""

import sys
from collections import Counter
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.utils import backend_registration
from torch.utils._mode_utils import no_dispatch

NAME = "simulated"
PACKAGE = str(Path(find_spec("kpops").origin).parent)
# What the host waits for, beside operations whose result is a number or has a size that depends on
# numbers: decompositions that the documentation of PyTorch names, and checks of their success.
WAITING = {"_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_lstsq", "linalg_matrix_exp"}
WAITING |= {"_linalg_check_errors"}
ON_NUMBERS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
COPIES = {"copy_", "_to_copy"}
# What PyTorch creates empty and then resizes, which a tensor in front of another cannot follow.
RESIZING = ("eye", "eye.m", "arange", "arange.start", "arange.start_step", "linspace", "randperm")
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}

state = SimpleNamespace(waits=Counter(), copies=Counter(), forbidden=False, tape=None)


def is_available():
    """Whether this PyTorch takes devices that are written in Python."""
    return hasattr(backend_registration, "_setup_privateuseone_for_python_backend")


class Simulated(torch.Tensor):
    """A tensor on the device, in front of one in host memory."""

    @staticmethod
    def __new__(cls, host):
        new = torch.Tensor._make_wrapper_subclass(
            cls,
            host.shape,
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=torch.device(NAME, 0),
        )
        new.host = host
        return new

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, *args, **(kwargs or {}))

    def __repr__(self):
        return f"{self.host!r} on {NAME}"

    def data_ptr(self):
        return self.host.data_ptr()

    def tolist(self):
        return self.cpu().tolist()

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            memo[id(self)] = _remade(self.host.clone(), *self.__reduce_ex__(2)[1][1:])
        return memo[id(self)]

    def __reduce_ex__(self, protocol):
        others = {k: v for k, v in self.__dict__.items() if k != "host"}  # says if a parameter
        return _remade, (self.host, self.requires_grad, others)


def _remade(host, requires_grad, others):
    new = Simulated(host).requires_grad_(requires_grad)
    new.__dict__.update(others)
    return new


def run(func, *args, **kwargs):
    """An operation in which a tensor is on the device, or is created there."""
    name, target = func.overloadpacket.__name__, kwargs.get("device")
    ours, theirs = {}, []

    def host(x):
        if isinstance(x, Simulated):
            ours[id(x.host)] = x
            return x.host
        if isinstance(x, torch.Tensor):
            theirs.append(x)
        return x

    on_host = _each(host, args)
    options = _each(host, kwargs)
    _refuse_mixed(func, name, theirs, kwargs)
    leaves_device = target is not None and torch.device(target).type != NAME
    leaves_device |= name == "copy_" and not isinstance(args[0], Simulated)
    to_meta = leaves_device and torch.device(target or "cpu").type == "meta"
    if target is not None and not to_meta:
        options["device"] = "cpu"
    if not to_meta and (leaves_device or _waits(func, name, args, kwargs)):
        _count(state.waits, name, "waits for the device")
    elif any(x.ndim or name in COPIES for x in theirs):
        _count(state.copies, name, "copies to the device")
    kernel = EMULATED.get(name, func)
    result = kernel(*on_host, **options)
    if torch.Tag.inplace_view in func.tags:
        with no_dispatch():
            func(*args, **kwargs)  # the shape of what stands in front; not of the memory
    elif state.tape is not None:
        state.tape.append((kernel, *(_each(_alias, x) for x in (on_host, options, result))))
    if leaves_device:
        return result
    if any(x.shape != x.host.shape for x in ours.values()):
        raise NotImplementedError(f"{name} changes the shape of its argument")
    # What works in place returns its argument.
    return _each(lambda x: ours[id(x)] if id(x) in ours else _simulated(x), result)


def _each(action, x):
    """`action` on all that is in lists, tuples and dicts."""
    if isinstance(x, dict):
        return {key: _each(action, y) for key, y in x.items()}
    if isinstance(x, list | tuple):
        return type(x)([_each(action, y) for y in x])
    return action(x)


def _alias(x):
    """The same memory, in a shape that stays when operations in place change that of `x`."""
    return x.detach() if isinstance(x, torch.Tensor) else x


def _simulated(x):
    return Simulated(x) if isinstance(x, torch.Tensor) else x


def _refuse_mixed(func, name, theirs, kwargs):
    """As CUDA does, which takes single numbers of the host elementwise, and indices."""
    takes_numbers = torch.Tag.pointwise in func.tags or name in INDEXING | {"fill_"}
    mixed = [x for x in theirs if not takes_numbers or (x.ndim and name not in INDEXING)]
    if mixed and name not in COPIES:
        shapes = [tuple(x.shape) for x in mixed]
        raise RuntimeError(f"{name} takes tensors of shapes {shapes} on cpu, others on {NAME}")
    if kwargs.get("generator") is not None:
        raise RuntimeError(f"{name} on {NAME} takes a generator on cpu")


def _waits(func, name, args, kwargs):
    if name in INDEXING:  # a mask is counted first
        return any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
    if kwargs.get("check_errors"):
        return True
    return name in WAITING or bool(ON_NUMBERS & set(func.tags))


def _count(counter, name, does):
    frame, line = sys._getframe(), "outside"
    while frame is not None and line == "outside":
        file = frame.f_code.co_filename
        if file.startswith(PACKAGE):
            line = f"{file[len(PACKAGE) + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back
    if state.tape is not None or state.forbidden:
        where = " inside a recording" if state.tape is not None else ""
        raise RuntimeError(f"{line}: {name} {does}{where}")
    counter[f"{line} {name}"] += 1


@contextmanager
def watched(*, forbidden=False):
    """Yield the waits and the copies to the device, by line; if `forbidden`, the first raises."""
    before = dict(vars(state))
    vars(state).update(waits=Counter(), copies=Counter(), forbidden=forbidden)
    try:
        yield state.waits, state.copies
    finally:
        vars(state).update(before)


def record(action, argument):
    """In the place of a CUDA graph: see kpops.engines.cuda_graph."""
    from kpops.engines.cuda_graph import Recording, _RefuseWaits

    with _RefuseWaits():
        action(argument)
    tape = state.tape = []
    try:
        result = action(argument)
    finally:
        state.tape = None

    def replay():
        for kernel, args, kwargs, kept in tape:
            new = kernel(*args, **kwargs)
            one = isinstance(new, torch.Tensor)
            for old, x in zip([kept] if one else kept, [new] if one else new, strict=True):
                if x is not None and old.data_ptr() != x.data_ptr():
                    old.copy_(x)

    return Recording(argument, result, replay)


# Operations that the CPU lacks: the fused cell of a GPU, which has no forward mode.


def _gru_cell(from_x, from_h, h, x_bias=None, h_bias=None):
    if x_bias is not None:
        from_x, from_h = from_x + x_bias, from_h + h_bias
    (x_r, x_z, x_n), (h_r, h_z, h_n) = from_x.chunk(3, 1), from_h.chunk(3, 1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)
    return n + z * (h - n), torch.stack([r, z, n, h, h_n])


def _gru_cell_backward(gradient, kept, has_bias):
    r, z, n, h, h_n = kept
    to_n = gradient * (1 - z) * (1 - n**2)
    to_r, to_z = to_n * h_n * r * (1 - r), gradient * (h - n) * z * (1 - z)
    from_x, from_h = torch.cat([to_r, to_z, to_n], 1), torch.cat([to_r, to_z, to_n * r], 1)
    biases = (from_x.sum(0), from_h.sum(0)) if has_bias else (None, None)
    return from_x, from_h, gradient * z, *biases


EMULATED = {
    "_thnn_fused_gru_cell": _gru_cell,
    "_thnn_fused_gru_cell_backward": _gru_cell_backward,
}


def install():
    """Add the device to this process, before its first backward pass; it stays there."""
    backend_registration._setup_privateuseone_for_python_backend(
        NAME,
        SimpleNamespace(
            is_available=lambda: True,
            is_initialized=lambda: True,
            _is_in_bad_fork=lambda: False,
            device_count=lambda: 1,
            current_device=lambda: 0,
            manual_seed_all=lambda seed: None,  # random numbers are those of the CPU
            get_amp_supported_dtype=lambda: [torch.float16],
        ),
    )
    # Operations on tensors of the device come to `run` by themselves; these create some.
    everything, creation = (torch.library.Library(name, "IMPL") for name in ("_", "aten"))
    everything.fallback(run, "PrivateUse1")
    for name in RESIZING:
        packet, _, overload = name.partition(".")
        func = getattr(getattr(torch.ops.aten, packet), overload or "default")
        creation.impl(name, partial(run, func), "PrivateUse1")
    install.libraries = everything, creation
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor makes a copy that is dispatched
    # A module that moves between dtypes takes new parameters: they are not what lies behind them.
    torch.__future__.set_overwrite_module_params_on_conversion(True)

    from kpops.engines import cuda_graph

    cuda_graph.RECORD[NAME] = record
