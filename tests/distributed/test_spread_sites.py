"""Networks at sites whose trials are spread over processes equal those of one process."""

import numpy as np
import torch
import torch.distributed as dist
from pool import error_of
from test_spread_operators import apart, own_trials
from torch import nn

import kpops

OPERATORS = ("P", "P_inv", "J", "K", "flow", "sensitivity", "C", "output_sensitivity", "output_ntk")


def linearized(sites="auto", **options):
    """Of all trials, and of those here: layers over positions, and attention among them."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 5, batch_first=True)
    net = nn.Sequential(nn.Linear(3, 4), layer, nn.Linear(4, 2)).double().eval()
    x = torch.randn(6, 3, 3, dtype=torch.float64)
    whole = kpops.linearize(net, x, sites=sites, **options)
    group = dist.group.WORLD
    return whole, kpops.linearize(net, x[own_trials()], sites=sites, process_group=group, **options)


def products(measure):
    whole, spread = linearized(measure=measure)
    return max(apart(getattr(whole, name), getattr(spread, name)) for name in OPERATORS)


def figures():
    """Spectra, traces, ranks and a gradient step, of both."""
    both = []
    for lin, trials in zip(linearized(), (slice(None), own_trials()), strict=True):
        targets = torch.randn(6, 3, 2, generator=torch.Generator().manual_seed(1)).double()
        step = kpops.gradient_flow(lin, targets[trials])
        both.append(
            {
                "flow": kpops.eigsh(lin.flow, 4, tol=1e-11, rng=0).eigenvalue.values,
                "K": kpops.eigsh(lin.K, 4, tol=1e-11, rng=0).eigenvalue.values,
                "ntk": kpops.eigsh(lin.output_ntk, 4, tol=1e-11, rng=0).eigenvalue.values,
                "P": kpops.svds(lin.P, 2, tol=1e-11, rng=0).singular_value.values,
                "loss": step.loss.values,
                "step": step.parameter_step.values,
            }
        )
    return both


def disagreeing():
    sites = ["0"] if dist.get_rank() else ["2"]
    return error_of(lambda: linearized(sites))


def test_products_equal_those_of_one_process(run):
    for measure in ("sum", "mean"):
        assert max(run(2, products, measure)) < 1e-12
    assert max(run(3, products, "sum")) < 1e-12  # one of them has a single trial


def test_spectra_and_gradient_steps_equal_those_of_one_process(run):
    for whole, spread in run(2, figures):
        for name, value in whole.items():
            np.testing.assert_allclose(spread[name], value, rtol=1e-10, atol=1e-12, err_msg=name)


def test_processes_that_name_other_sites_are_refused(run):
    for message in run(2, disagreeing):
        assert "sites" in str(message)
