"""Interference between tasks against dense derivatives by autograd and naive formulas."""

import dataclasses
import json
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
import xarray as xr
from cases import BY_NAME, HIDDEN, INPUTS
from dense import dense, relative
from scipy.stats import kstest
from torch import nn

import kpops
from kpops.learning.interference import accumulate_interference, interference, interference_operator
from kpops.learning.task_alignment import group_trials, of_trials, trial_gradients
from kpops.testing import check_operator

STEPS = 5
TASKS = np.array(["Pro", "Anti", "Anti", "Pro", "Pro", "Anti"], dtype=object)
ANGLES = np.array([2.0, 1.0, 0.0, 0.0, 1.0, 2.0])
PRO, ANTI = [3, 4, 0], [2, 1, 5]  # by angle
MASK = torch.arange(STEPS) < torch.tensor([[5], [3], [5], [2], [4], [1]])
MODELS = ["gru", "lstm_two_layers", "shared_norm_cell"]


@cache
def reference(name, masked):
    """A model, its inputs, and its derivative dh/dtheta (trial, time, unit, parameter)."""
    case = BY_NAME[name]
    model = case.model()
    torch.manual_seed(2)
    inputs = torch.randn(6, STEPS, INPUTS, dtype=torch.float64)
    h0 = torch.randn(6, case.state_size, dtype=torch.float64)
    found = dense(case, model, inputs, h0, mask=MASK if masked else None)
    return model, inputs, h0, found.sensitivity.reshape(6, STEPS, case.state_size, -1)


def problem(name="gru", *, mask=None, **options):
    """A linearization, and its derivative by autograd."""
    model, inputs, h0, sensitivity = reference(name, mask is not None)
    coords = {"task": ("trial", TASKS), "angle": ("trial", ANGLES)}
    labelled = xr.DataArray(inputs.numpy(), dims=("trial", "time", "input"), coords=coords)
    return kpops.linearize(model, labelled, h0=h0, mask=mask, **options), sensitivity


def cosine(a, b):
    a, b = torch.as_tensor(a).flatten(), torch.as_tensor(b).flatten()
    return float(a @ b / (a.norm() * b.norm()))


def pair(result, name):
    return float(result[name].sel(task="Pro", task_in="Anti"))


@pytest.fixture
def trained():
    """A network with a readout, its inputs and targets, and its linearization."""
    torch.manual_seed(0)
    network = kpops.Network(nn.GRU(3, 6), nn.Linear(6, 2)).double()
    coords = {"task": ("trial", TASKS), "angle": ("trial", ANGLES)}
    inputs = xr.DataArray(torch.randn(6, 7, 3).double().numpy(), coords, ("trial", "time", "input"))
    targets = torch.randn(6, 7, 2, dtype=torch.float64)
    return network, inputs, targets, kpops.linearize(network, inputs)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
@pytest.mark.parametrize("measure", ["sum", "mean"])
def test_the_operator_is_a_block_of_the_dense_flow_operator(name, mask, measure):
    lin, D = problem(name, mask=mask, measure=measure)
    scale = 1 if measure == "sum" else 1 / (30 if mask is None else int(mask.sum()))
    where = {"Pro": [0, 3, 4], "Anti": [1, 2, 5]}
    for i, j in product(where, where):
        op = interference_operator(lin, i, j)
        rows, columns = (D[where[k]].flatten(0, 2) for k in (i, j))
        assert relative(op.to_dense(), scale * rows @ columns.T) < 1e-11
        assert op.positive is (i == j)
        assert op.domain.coords["angle"][1].tolist() == ANGLES[where[j]].tolist()
        assert op.attrs["measure"] == measure
        check_operator(op)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
def test_alignments_of_operators_are_those_of_dense_derivatives(name, mask):
    lin, D = problem(name, mask=mask)
    result = interference(lin, condition="angle")
    a, b = D[PRO].flatten(0, 2), D[ANTI].flatten(0, 2)
    assert pair(result, "trace_alignment") == pytest.approx(cosine(a, b), abs=1e-11)
    expected = cosine(a.T @ a, b.T @ b)
    assert pair(result, "gauss_newton_alignment") == pytest.approx(expected, abs=1e-11)
    block = (a @ b.T).square().sum() / ((a @ a.T).norm() * (b @ b.T).norm())
    assert expected == pytest.approx(float(block), abs=1e-12)
    centre = torch.kron(torch.eye(3) - 1 / 3, torch.eye(len(a) // 3)).double()
    kernels = [centre @ d @ d.T @ centre for d in (a, b)]
    assert pair(result, "kernel_alignment") == pytest.approx(cosine(*kernels), abs=1e-11)
    for name in ("trace", "gauss_newton", "kernel"):
        assert (result[f"{name}_alignment_stderr"] == 0).all()
        assert (np.diag(result[f"{name}_alignment"]) == 1).all()


def test_estimates_lie_within_their_error_bars(monkeypatch):
    torch.manual_seed(0)
    rnn = nn.RNN(3, 30, batch_first=True).double()
    lin = kpops.linearize(rnn, torch.randn(6, 12, 3, dtype=torch.float64))
    few = interference(lin, TASKS, num_matvecs=64, rng=0)
    monkeypatch.setattr("kpops.linalg.exact.DENSE_SIZE", 2000)
    exact = interference(lin, TASKS)
    for name in ("trace_alignment", "gauss_newton_alignment", "kernel_alignment"):
        error = pair(few, f"{name}_stderr")
        assert 0 < error < 0.05 and pair(exact, f"{name}_stderr") == 0
        assert abs(pair(few, name) - pair(exact, name)) < 4 * error
    again = interference(lin, TASKS, num_matvecs=64, rng=0)
    monkeypatch.undo()
    xr.testing.assert_identical(interference(lin, TASKS, num_matvecs=64, rng=0), few)
    assert pair(again, "trace_alignment") == pair(exact, "trace_alignment")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
def test_gradients_of_trials_are_those_of_autograd(name, mask):
    lin, D = problem(name, mask=mask)
    error = torch.randn(D.shape[:3], dtype=torch.float64)
    rows = trial_gradients(lin, lin.P.apply_adjoint(error[None])[0])
    assert relative(rows, torch.einsum("btsp,bts->bp", D, error)) < 1e-12


@pytest.mark.parametrize("engine", ["gated", "jacobian"])
def test_a_part_of_the_trials_is_that_part_of_the_whole(engine):
    lin, D = problem("gru_two_layers", mask=MASK, engine=engine)
    part = of_trials(lin, np.array([4, 1]))
    assert part.engine.name == engine
    expected = D[[4, 1]].flatten(0, 2)
    assert relative(part.sensitivity.to_dense(), expected) < 1e-12
    assert part.states.angle.values.tolist() == [1.0, 1.0]
    np.testing.assert_array_equal(part.states, lin.states[[4, 1]])


def gradients_by_autograd(network, inputs, targets):
    """Of each task's share of the mean squared error, by parameter."""
    x = torch.as_tensor(inputs.values)
    found = {}
    for task in ("Pro", "Anti"):
        rows = torch.as_tensor((inputs.task == task).values)
        share = (network(x) - targets)[rows].square().sum() / targets.numel()
        parameters = list(network.recurrent.parameters())
        found[task] = [g.flatten() for g in torch.autograd.grad(share, parameters)]
    return found


def test_gradients_of_tasks_are_those_of_autograd(trained):
    network, inputs, targets, lin = trained
    result = interference(lin, targets=targets, num_matvecs=0)
    by_parameter = gradients_by_autograd(network, inputs, targets)
    g = {task: torch.cat(parts) for task, parts in by_parameter.items()}
    for i, j in product(g, g):
        at = {"task": i, "task_in": j}
        assert float(result.gradient_cosine.sel(at)) == pytest.approx(cosine(g[i], g[j]), abs=1e-12)
        assert float(result.loss_change.sel(at)) == pytest.approx(-float(g[i] @ g[j]), rel=1e-11)
        expected = [-float(a @ b) for a, b in zip(by_parameter[i], by_parameter[j], strict=True)]
        np.testing.assert_allclose(result.loss_change_by_parameter.sel(at), expected, rtol=1e-10)
        assert float(result.gradient_norm.sel(task=i)) == pytest.approx(float(g[i].norm()))
    whole = torch.stack(list(g.values())).sum(0)
    assert float(result.loss_change.sum()) == pytest.approx(-float(whole @ whole), rel=1e-12)
    assert result.parameter.values.tolist() == list(lin.parameters)


def test_the_loss_changes_by_the_error_times_the_state_change(trained):
    _, _, targets, lin = trained
    result = interference(lin, targets=targets, num_matvecs=0)
    error = kpops.gradient_flow(lin, targets).error
    errors = {task: error[(error.task == task).values] for task in ("Pro", "Anti")}
    for i in errors:
        own = -(interference_operator(lin, i, i) @ errors[i])
        for j in errors:
            change = -(interference_operator(lin, i, j) @ errors[j])
            at = {"task": i, "task_in": j}
            effect = float(np.vdot(errors[i], change))
            assert float(result.loss_change.sel(at)) == pytest.approx(effect, rel=1e-10)
            norm = float(np.linalg.norm(change))
            assert float(result.state_change_norm.sel(at)) == pytest.approx(norm, rel=1e-11)
            expected = cosine(change.values, own.values)
            assert float(result.state_change_cosine.sel(at)) == pytest.approx(expected, abs=1e-11)


def test_a_real_step_on_one_task_changes_the_loss_of_the_other_as_said(trained):
    network, inputs, targets, lin = trained
    said = pair(interference(lin, targets=targets, num_matvecs=0), "loss_change")
    step = gradients_by_autograd(network, inputs, targets)["Anti"]
    pro = torch.as_tensor((inputs.task == "Pro").values)
    x = torch.as_tensor(inputs.values)

    def loss():
        with torch.no_grad():
            return float((network(x) - targets)[pro].square().sum() / targets.numel())

    before, gaps = loss(), []
    start = nn.utils.parameters_to_vector(network.recurrent.parameters()).detach()
    for eta in (1e-3, 5e-4):
        moved = start - eta * torch.cat(step)
        nn.utils.vector_to_parameters(moved, network.recurrent.parameters())
        gaps.append(abs((loss() - before) / eta - said))
    assert gaps[0] < 1e-2 * abs(said)
    assert gaps[1] / gaps[0] == pytest.approx(0.5, abs=0.02)  # what is left is linear in eta


def test_scaling_the_loss_scales_changes_and_no_cosine(trained):
    _, _, targets, lin = trained

    def tenfold(y, target):
        return 10 * (y - target).square().mean()

    one = interference(lin, targets=targets, num_matvecs=0)
    ten = interference(lin, targets=targets, loss=tenfold, num_matvecs=0)
    for name in one.data_vars:
        power = {"loss_change": 100, "gradient_norm": 10, "state_change_norm": 10, "loss": 10}
        factor = power.get(name.removesuffix("_by_parameter"), 1)
        np.testing.assert_allclose(ten[name], factor * one[name], rtol=1e-10, atol=1e-13)


def test_the_measure_changes_nothing(trained):
    network, inputs, targets, lin = trained
    mean = kpops.linearize(network, inputs, measure="mean")
    results = [interference(part, targets=targets, n_permutations=3, rng=0) for part in (lin, mean)]
    # Not to the bit: a standard deviation of three equal numbers is their rounding.
    xr.testing.assert_allclose(*results, rtol=1e-10, atol=1e-12)
    assert results[1].attrs["measure"] == "mean"


@pytest.mark.parametrize(
    "options",
    [{"engine": "gated", "gates": "recomputed"}, {"engine": "jacobian"}, {"engine": "autodiff"}],
    ids=str,
)
def test_the_engine_does_not_matter(trained, options):
    network, inputs, targets, lin = trained
    other = kpops.linearize(network, inputs, **options)
    results = [interference(part, targets=targets) for part in (lin, other)]
    xr.testing.assert_allclose(*results, rtol=1e-9)


def test_only_parameters_that_learn_count(trained):
    network, inputs, targets, lin = trained
    names = ["weight_hh_l0", "bias_ih_l0"]
    few = interference(kpops.linearize(network, inputs, parameters=names), targets=targets)
    change = interference(lin, targets=targets).loss_change_by_parameter.sel(parameter=names)
    np.testing.assert_allclose(few.loss_change_by_parameter, change, rtol=1e-10)
    np.testing.assert_allclose(few.loss_change, change.sum("parameter"), rtol=1e-10)


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
def test_alignments_of_states_are_those_of_naive_formulas(mask):
    lin, _ = problem(mask=mask)
    result = interference(lin, condition="angle", num_matvecs=0)
    valid = np.ones((6, STEPS), bool) if mask is None else mask.numpy()
    states = np.where(valid[..., None], lin.trajectory.states.numpy(), 0)
    centred, tuned = [], []
    for members in (PRO, ANTI):
        mean = states[members].sum((0, 1)) / valid[members].sum()
        centred.append(np.where(valid[members][..., None], states[members] - mean, 0))
        tuned.append(states[members] - states[members].mean(0))
    assert pair(result, "state_cosine") == pytest.approx(cosine(*centred), abs=1e-12)
    assert pair(result, "state_tuning_cosine") == pytest.approx(cosine(*tuned), abs=1e-12)
    a, b = (x.reshape(-1, HIDDEN) for x in centred)
    # the kernels of Kornblith et al., whose centring is done
    assert pair(result, "state_cka") == pytest.approx(cosine(a @ a.T, b @ b.T), abs=1e-12)


def test_tuning_of_gradients_is_that_of_single_trials(trained):
    network, inputs, targets, lin = trained
    result = interference(lin, condition="angle", targets=targets, num_matvecs=0)
    x, rows = torch.as_tensor(inputs.values), []
    for b in range(6):
        loss = (network(x)[b] - targets[b]).square().sum()
        gradient = torch.autograd.grad(loss, list(network.recurrent.parameters()))
        rows.append(torch.cat([g.flatten() for g in gradient]))
    rows = torch.stack(rows)
    tuned = [rows[m] - rows[m].mean(0) for m in (PRO, ANTI)]
    assert pair(result, "gradient_tuning_cosine") == pytest.approx(cosine(*tuned), abs=1e-11)


def test_cka_is_blind_to_rotations_and_the_cosine_is_not(trained):
    lin = trained[-1]
    torch.manual_seed(3)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    states = lin.trajectory.states.clone()
    pro, anti = [0, 3, 4], [1, 2, 5]
    states[anti] = 3 * states[pro] @ rotation
    turned = dataclasses.replace(lin, trajectory=dataclasses.replace(lin.trajectory, states=states))
    result = interference(turned, num_matvecs=0)
    assert pair(result, "state_cka") == pytest.approx(1, abs=1e-12)
    assert pair(result, "state_cosine") < 0.9


def test_a_task_and_its_copy_are_one(trained):
    network, inputs, targets, _ = trained
    twice = xr.concat([inputs, inputs], "trial").assign_coords(task=("trial", [0] * 6 + [1] * 6))
    lin = kpops.linearize(network, twice)
    both = torch.cat([targets, targets])
    result = interference(lin, targets=both, n_permutations=20, rng=0)
    for name in result.data_vars:
        if name.endswith(("_cosine", "_alignment", "_cka")):
            np.testing.assert_allclose(result[name], 1, rtol=1e-12)
        if "_p_" in name:  # every permutation is a tie
            np.testing.assert_array_equal(result[name], 1)
    opposite = torch.as_tensor(lin.outputs.values)
    opposite = torch.cat([opposite[:6] - 1, opposite[6:] + 1])
    result = interference(lin, targets=opposite, num_matvecs=0)
    np.testing.assert_allclose(result.gradient_cosine, [[1, -1], [-1, 1]], rtol=1e-12)
    np.testing.assert_allclose(result.state_change_cosine, [[1, -1], [-1, 1]], rtol=1e-12)


def test_the_order_of_trials_does_not_matter_if_conditions_are_given(trained):
    network, inputs, targets, lin = trained
    order = np.array([5, 3, 0, 2, 4, 1])
    other = kpops.linearize(network, inputs[order])
    one = interference(lin, targets=targets, condition="angle")
    two = interference(other, targets=targets[order], condition="angle")
    xr.testing.assert_allclose(two.sel(task=one.task, task_in=one.task_in), one, rtol=1e-10)
    assert two.task.values.tolist() == ["Anti", "Pro"]  # as they come


def test_tasks_of_unequal_size_are_compared_where_that_makes_sense(trained):
    _, _, targets, lin = trained
    labels = [1, 1, 1, 1, 2, 2]
    result = interference(lin, labels, targets=targets, n_permutations=5, rng=0)
    assert {"gauss_newton_alignment", "gradient_cosine", "state_change_cosine"} <= set(result)
    assert "gradient_cosine_p_lower" in result
    missing = {"trace_alignment", "kernel_alignment", "state_cosine", "state_cka"}
    assert not missing & set(result)
    assert not [name for name in result if "tuning" in name]


def test_permutations_give_all_assignments_within_conditions_alike(trained):
    _, _, _, lin = trained
    groups = group_trials(lin, "task", "angle")
    rng = np.random.default_rng(0)
    seen = [tuple(groups.shuffled(rng).members[0]) for _ in range(4000)]
    assert set(seen) == set(product(*zip(PRO, ANTI, strict=True)))  # 2^3
    counts = np.unique([str(s) for s in seen], return_counts=True)[1]
    assert abs(counts - 500).max() < 4 * np.sqrt(500)
    free = dataclasses.replace(groups, matched=False)
    seen = {frozenset(free.shuffled(rng).members[0].tolist()) for _ in range(1000)}
    assert len(seen) == 20  # 6 choose 3


@pytest.mark.parametrize("n_runs", [40, pytest.param(100, marks=pytest.mark.slow)])
def test_p_values_are_uniform_if_tasks_are_exchangeable(n_runs):
    torch.manual_seed(0)
    rnn = nn.RNN(2, 3, batch_first=True).double()
    lin = kpops.linearize(rnn, torch.randn(24, 3, 2, dtype=torch.float64), engine="autodiff")
    rng = np.random.default_rng(0)
    options = {"num_matvecs": 0, "n_permutations": 39, "condition": np.arange(24) // 2}
    found = []
    for _ in range(n_runs):
        labels = np.concatenate([rng.permutation(2) for _ in range(12)])
        targets = rng.standard_normal((24, 3, 3))
        result = interference(lin, labels, targets=targets, rng=rng, **options)
        found.append([float(result[name][0, 1]) for name in result if "_p_" in str(name)])
    steps = np.array(found)
    np.testing.assert_allclose(steps * 40, np.round(steps * 40), rtol=1e-13)
    assert steps.min() >= 1 / 40
    assert steps.shape[1] == 8  # both sides of four cosines
    for p in steps.T:  # of 40 values, spread over their cells to be continuous
        assert kstest(p - rng.uniform(0, 1 / 40, len(p)), "uniform").pvalue > 0.01


def test_p_values_tell_tasks_that_agree_from_tasks_that_do_not(trained):
    network, _, _, _ = trained
    torch.manual_seed(4)
    lin = kpops.linearize(network, torch.randn(16, 7, 3, dtype=torch.float64))
    labels = ["Pro"] * 8 + ["Anti"] * 8
    outputs = torch.as_tensor(lin.outputs.values)
    goals = torch.cat([outputs[:8] + 1, outputs[8:] - 1])
    opposed = interference(lin, labels, targets=goals, n_permutations=199, rng=0)
    assert pair(opposed, "gradient_cosine") < -0.9
    # of 2^8 assignments, none mixes less than the two that do not mix
    assert pair(opposed, "gradient_cosine_p_lower") < 0.03
    assert pair(opposed, "gradient_cosine_p_upper") > 0.97
    assert pair(opposed, "gradient_cosine_null_mean") > -0.5
    assert 0.05 < pair(opposed, "state_cosine_p_lower") < 0.95


def test_accumulated_interference_is_the_trapezoid_of_the_loss_change():
    step = np.array([0, 1, 4])
    values = np.stack([(s + 1.0) * np.array([[-2, 0.5, 1], [3, -1, 0], [0, 0, -4]]) for s in step])
    coords = {"step": step, "task": list("abc"), "task_in": list("abc")}
    change = xr.DataArray(values, coords, ("step", "task", "task_in"))
    total = accumulate_interference(xr.Dataset({"loss_change": change}), learning_rate=0.5)
    integral = 0.5 * (step**2 / 2 + step)  # of s + 1
    np.testing.assert_allclose(
        total.accumulated_loss_change.sel(task="a", task_in="b"), integral / 2
    )
    np.testing.assert_allclose(total.accumulated_from_others.sel(task="a"), 1.5 * integral)
    np.testing.assert_allclose(total.accumulated_from_others.sel(task="b"), 3 * integral)


def test_accumulated_interference_adds_up_to_the_loss_under_gradient_descent(trained):
    network, inputs, targets, _ = trained
    x, eta = torch.as_tensor(inputs.values), 0.05
    checkpoints, losses = [], []
    for step in range(41):
        state = {k: v.detach().clone() for k, v in network.state_dict().items()}
        checkpoints.append((step, state))
        loss = (network(x) - targets).square().mean()
        losses.append(loss.item())
        parameters = list(network.recurrent.parameters())
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= eta * gradient
    result = kpops.over_training(
        network,
        checkpoints,
        inputs,
        lambda lin: interference(lin, targets=targets, num_matvecs=0),
    )
    total = accumulate_interference(result, eta)
    assert total.accumulated_loss_change.dims == ("step", "task", "task_in")
    summed = total.accumulated_loss_change.sum(("task", "task_in"))
    np.testing.assert_allclose(result.loss, losses, rtol=1e-12)
    fall = np.array(losses) - losses[0]
    np.testing.assert_allclose(summed[1:], fall[1:], rtol=2e-3)


def test_results_are_labelled_keep_the_dtype_and_can_be_saved(trained, tmp_path):
    network, inputs, targets, _ = trained
    lin = kpops.linearize(network.float(), inputs.astype("float32"))
    result = interference(lin, targets=targets.float(), condition="angle", n_permutations=2, rng=0)
    for variable in [*result.data_vars.values(), *result.coords.values()]:
        assert {"long_name", "units"} <= set(variable.attrs)
    assert all(v.dtype == np.float32 for v in result.data_vars.values())
    assert json.loads(result.attrs["configuration"])["condition"] == "angle"
    assert result.task.values.tolist() == ["Pro", "Anti"]
    result.to_netcdf(tmp_path / "result.nc", engine="h5netcdf")
    result.to_zarr(tmp_path / "result.zarr", consolidated=False)
    loaded = xr.load_dataset(tmp_path / "result.nc", engine="h5netcdf")
    xr.testing.assert_identical(loaded, result)
    again = xr.open_zarr(tmp_path / "result.zarr", consolidated=False).load()
    xr.testing.assert_identical(again, result)


def test_what_is_zero_has_no_cosine(trained):
    lin = trained[-1]
    result = interference(lin, targets=lin.outputs, num_matvecs=0, n_permutations=4, rng=0)
    assert float(abs(result.loss_change).max()) == 0
    for name in ("gradient_cosine", "gradient_tuning_cosine", "state_change_cosine"):
        assert result[name].isnull().all()
    assert result.gradient_cosine_p_lower.isnull().all()
    assert result.state_cosine.notnull().all()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"by": "rule"}, r"by='rule' is no coordinate of trials, which are \['angle', 'task'"),
        ({"by": ["a"] * 5}, r"by has shape \(5,\), expected \(6,\): one label per trial"),
        ({"by": ["a"] * 6}, "all trials are of 'a', a comparison needs two groups"),
        ({"by": [1, 1, 1, 2, 2, np.nan]}, "by is not a number at trial 5"),
        ({"condition": [0, 1, 2, 0, 0, 0]}, "conditions of 'Anti' and 'Pro' are not the same"),
        ({"num_matvecs": 1}, "num_matvecs=1: pass 0, or at least 2"),
        ({"n_permutations": -1}, "n_permutations=-1: pass 0 or more"),
    ],
)
def test_wrong_use_is_refused(trained, options, told):
    with pytest.raises(ValueError, match=told):
        interference(trained[-1], **options)


def test_unknown_tasks_and_unfit_results_are_refused(trained):
    with pytest.raises(ValueError, match=r"no task 'Go': choose from \['Pro', 'Anti'\]"):
        interference_operator(trained[-1], "Go", "Pro")
    with pytest.raises(ValueError, match="expected loss_change with the dims step"):
        accumulate_interference(xr.Dataset())
    pairs = {"step": [1, 0], "task": ["a"], "task_in": ["a"]}
    backwards = xr.DataArray(np.ones((2, 1, 1)), pairs, list(pairs))
    with pytest.raises(ValueError, match="the steps of result do not increase"):
        accumulate_interference(xr.Dataset({"loss_change": backwards}))


def test_nothing_of_the_model_is_changed(trained):
    network, _, targets, lin = trained
    before = {k: v.clone() for k, v in network.state_dict().items()}
    states = lin.trajectory.states.clone()
    interference(lin, targets=targets, n_permutations=2)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert torch.equal(lin.trajectory.states, states)
