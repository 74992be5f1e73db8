"""The precision in which kpops computes: that of the dtype, whatever the user lets torch do.

Autocast belongs to a thread. TF32 or bfloat16 within float32 products, and cuDNN, belong to the
process: they are off while any thread computes here, and as the user has them afterwards. cuDNN has
no forward mode, no double backward and no backward in eval mode, and a TF32 of its own.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from itertools import starmap
from operator import call
from typing import Any, TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])

PRECISIONS = ("highest", "tf32x3", "tf32")
"""``"tf32"`` lets matrix products of float32 round their factors to 10 bits, on a GPU; ``"tf32x3"``
does so in :func:`product` alone, for the upper and the lower bits of its factors."""


def check_precision(precision: str, dtype: torch.dtype) -> None:
    """Refuse an unknown precision, and TF32 in float64."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: choose one of {list(PRECISIONS)}")
    if precision != "highest" and dtype != torch.float32:
        raise ValueError(
            f"precision={precision!r} rounds factors of float32, the model computes in {dtype}: "
            "pass dtype=torch.float32, too, or leave precision= out"
        )


def remark(precision: str | None) -> str:
    """What a repr says of it beside the dtype."""
    return {"tf32x3": " by 3 x TF32", "tf32": " by TF32"}.get(precision or "", "")


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Keep autocast out; where it is off, nothing is entered, which takes as long as a kernel."""
    on = torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else nullcontext()


def in_full_precision(function: Function) -> Function:
    """Keep out of a function what lowers the precision of products: autocast, TF32, bfloat16."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        with ExitStack() as stack:
            for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
                stack.enter_context(without_autocast(device))
            stack.enter_context(Computing("highest"))
            return function(*arguments, **options)

    return wrapped  # type: ignore[return-value]


class Computing:
    """Within it, this thread computes in one of :data:`PRECISIONS`, without cuDNN.

    It nests. While several threads compute, the highest precision among theirs is that of all.
    """

    thread = 0  # from begin to end

    def __init__(self, precision: str = "highest") -> None:
        self.precision = precision

    def __enter__(self) -> None:
        try:
            _process.begin(self)
        except BaseException:  # Ctrl-C
            _process.end(self)
            raise

    def __exit__(self, *_: object) -> None:
        _process.end(self)

    def __del__(self) -> None:
        if self.thread:  # after Ctrl-C within __exit__
            _process.end(self)


def current() -> str:
    """The precision that this thread asks for: ``"highest"``, except in a product with others."""
    mine = _process.computing.get(threading.get_ident())
    return next(reversed(mine.values())) if mine else "highest"


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a @ b``, where ``"tf32x3"`` is asked for as the sum of three products by TF32.

    With upper bits A, B and lower bits a, b, ``(A + a)(B + b) = A B + (a B + A b) + a b``, of which
    the last is within the rounding of float32. It pays where TF32 is more than three times as fast.
    """
    if current() != "tf32x3":
        return a @ b
    (upper_a, lower_a), (upper_b, lower_b) = _halves(a), _halves(b)
    with Computing("tf32"):
        return upper_a @ upper_b + (lower_a @ upper_b + upper_a @ lower_b)


def accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add the :func:`product` of each of some matrices to `total`."""
    if current() == "tf32x3":
        total += product(a, b)
    else:
        total.baddbmm_(a, b)


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """What TF32 keeps of float32 numbers, and the rest."""
    # Half of the last bit that is kept is added, and the lower 13 are dropped.
    upper = ((x.contiguous().view(torch.int32) + 2**12) & -(2**13)).view(torch.float32)
    return upper, x - upper


# torch's settings. The older one, which torch.set_float32_matmul_precision and allow_tf32 change,
# comes with newer ones for each backend and operation, fp32_precision; torch raises where the two
# disagree. A newer value "none" inherits that of its backend, and this that of all backends, and
# torch shows what is inherited like what is set. So they are read from the outermost on, each with
# nothing left to inherit. Convolutions and RNNs of cuDNN, which is off, stay out: no call sets
# their initial value.
_Key = tuple[str, ...]
_OLDER: _Key = ()
_OUTER: list[_Key] = [("generic", "all"), ("cuda", "all"), ("mkldnn", "all")]
_INNER: list[_Key] = [("cuda", "matmul"), *(("mkldnn", op) for op in ("matmul", "conv", "rnn"))]
_NEWER = hasattr(torch._C, "_get_fp32_precision_getter")  # since torch 2.9
if not _NEWER:
    _OUTER, _INNER = [], []
_REDUCED = frozenset({"tf32", "bf16"})


def _get(key: _Key) -> str:
    if key:
        return torch._C._get_fp32_precision_getter(*key)
    try:
        return torch._C._get_float32_matmul_precision()
    except RuntimeError:  # it disagrees with a newer one
        return "unknown"


def _calls(settings: dict[_Key, str]) -> list[tuple[Any, ...]]:
    """What sets them, the older one first, since it changes newer ones."""
    newer = [(torch._C._set_fp32_precision_setter, *k, v) for k, v in settings.items() if k]
    older = [(torch._C._set_float32_matmul_precision, v) for k, v in settings.items() if not k]
    return [*older, *newer]


def _at_once(calls: list[tuple[Any, ...]]) -> None:
    """Call functions of C in one call of C, which neither Ctrl-C nor another thread cuts in two."""
    list(starmap(call, calls))


def _ours(older: str, of_gpu: str) -> dict[_Key, str]:
    newer = {**dict.fromkeys(_OUTER, "none"), **dict.fromkeys(_INNER, "ieee")}
    return newer | ({("cuda", "matmul"): of_gpu} if _NEWER else {}) | {_OLDER: older}


_OURS = {"highest": _ours("highest", "ieee"), "tf32": _ours("high", "tf32")}
_CALLS = {precision: _calls(settings) for precision, settings in _OURS.items()}


def _in_effect(precision: str) -> bool:
    if not _NEWER:
        return _get(_OLDER) == _OURS[precision][_OLDER]
    on_gpu, *on_cpu = starmap(torch._C._get_fp32_precision_getter, _INNER)
    return (on_gpu == "tf32") == (precision == "tf32") and _REDUCED.isdisjoint(on_cpu)


class _Process:
    """What the threads compute in, and the settings of the user that were changed for it.

    Ctrl-C may come within any method; :meth:`end` completes what it left.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        # The precision of each Computing, by thread and identity, the innermost last. It holds no
        # reference, so one that Ctrl-C kept from its end is deleted, and ends then.
        self.computing: dict[int, dict[int, str]] = {}
        self.theirs: dict[_Key, str] = {}
        self.ours: dict[_Key, str] = {}
        self.had_cudnn = False

    def begin(self, one: Computing) -> None:
        with self.lock:
            one.thread = threading.get_ident()
            self.computing.setdefault(one.thread, {})[id(one)] = one.precision
            self._settle()

    def end(self, one: Computing) -> None:
        with self.lock:
            mine = self.computing.get(one.thread, {})
            while id(one) in mine:
                mine.popitem()
            if not mine:
                self.computing.pop(one.thread, None)
            self._settle()
            one.thread = 0

    def _settle(self) -> None:
        wanted = {next(reversed(mine.values())) for mine in self.computing.values() if mine}
        if not wanted:
            self._give_back()
            return
        if torch._C._get_cudnn_enabled():
            self.had_cudnn = True
            torch._C._set_cudnn_enabled(False)
        precision = "tf32" if wanted == {"tf32"} else "highest"
        if not _in_effect(precision):
            if not self.ours or any(_get(key) != value for key, value in self.ours.items()):
                self._note()
            _at_once([*_CALLS[precision], (self.ours.update, _OURS[precision])])

    def _note(self) -> None:
        """Note what the user has set, perhaps meanwhile in another thread, and set "none"."""
        for key in (*_OUTER, *_INNER):
            value = _get(key)
            if value not in ("none", self.ours.get(key)):
                self.theirs[key] = value
            if value != "none":
                _at_once(_calls({key: "none"}))
        older = _get(_OLDER)
        if older != self.ours.get(_OLDER):
            self.theirs[_OLDER] = older

    def _give_back(self) -> None:
        if self.had_cudnn:
            torch._C._set_cudnn_enabled(True)
            self.had_cudnn = False
        if not self.theirs:
            return
        settings, changed = {}, {}
        for key in (*_OUTER, *_INNER):
            value = _get(key)
            if value in ("none", self.ours.get(key)):
                settings[key] = self.theirs.get(key, "none")
            elif key in _INNER:  # by the user meanwhile
                changed[key] = value
        if self.ours and _get(_OLDER) in ("unknown", self.ours[_OLDER]):
            settings |= {**changed, _OLDER: self.theirs[_OLDER]}
        _at_once([*_calls(settings), (self.theirs.clear,), (self.ours.clear,)])


_process = _Process()


def _forget_other_threads() -> None:
    me = threading.get_ident()
    _process.computing = {t: mine for t, mine in _process.computing.items() if t == me}
    _process.lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_process.lock.acquire,
        after_in_parent=_process.lock.release,
        after_in_child=_forget_other_threads,
    )
