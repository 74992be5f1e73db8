"""Torch's settings of precision: set, shown, and what is underneath."""

from contextlib import contextmanager

import torch

get, put = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
BY_BACKEND = [("generic", "all"), ("cuda", "all"), ("mkldnn", "all"), ("cuda", "matmul")]
BY_BACKEND += [("mkldnn", "matmul"), ("mkldnn", "conv"), ("mkldnn", "rnn")]
OF_CUDNN = [("cuda", "conv"), ("cuda", "rnn")]
HIGH = {"highest", "none", "ieee"}
NONE = ("none",) * 7


def shown():
    """What both interfaces of torch show."""
    older = {
        "matmul": torch.get_float32_matmul_precision,
        "cublas": lambda: torch.backends.cuda.matmul.allow_tf32,
        "cudnn": lambda: torch.backends.cudnn.allow_tf32,
        "enabled": lambda: torch.backends.cudnn.enabled,
    }
    result = {key: get(*key) for key in BY_BACKEND + OF_CUDNN}
    for name, read in older.items():
        try:
            result[name] = read()
        except RuntimeError as error:  # the two interfaces disagree
            result[name] = str(error)
    return result


def reduced(settings):
    return {key for key in BY_BACKEND if settings[key] not in HIGH}


def apply(older, *values):
    torch.set_float32_matmul_precision(older)
    for key, value in zip(BY_BACKEND, values, strict=True):
        put(*key, value)


def underneath():
    """What is set, which no longer shows what it inherits as outer settings are taken away."""
    values = []
    for key in BY_BACKEND:
        values.append(get(*key))
        put(*key, "none")
    return torch.get_float32_matmul_precision(), *values


@contextmanager
def initial_settings():
    """What torch starts with, and afterwards what there was before."""
    before = underneath()
    apply("highest", *NONE)
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = True
        apply(*before)
