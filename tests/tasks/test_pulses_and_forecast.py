"""Flip-flop, integration, low-rank forecast and one-hot Memory-Pro."""

import numpy as np
import pytest

from kpops.tasks import flip_flop, integration, low_rank_forecast, memory_pro_one_hot


def test_flip_flop_holds_the_sign_of_the_last_pulse():
    task = flip_flop(30, noise=0, rng=0, dtype="float64")
    assert task.inputs.shape == task.targets.shape == (30, 90, 3)
    for trial in range(30):
        state = np.zeros(3)
        for t in range(90):
            for bit in range(3):
                if task.inputs.values[trial, t, bit] != 0:
                    state[bit] = np.sign(task.inputs.values[trial, t, bit])
            np.testing.assert_array_equal(task.targets.values[trial, t], state)


def test_pulses_have_the_stated_rate_and_fair_signs():
    pulses = flip_flop(2000, bits=2, probability=0.2, noise=0, steps=50, rng=0).inputs.values
    assert set(np.unique(pulses)) == {-1, 0, 1}
    n = pulses.size
    rate = (pulses != 0).mean()
    assert abs(rate - 0.2) < 5 * np.sqrt(0.2 * 0.8 / n)
    assert abs(pulses.mean()) < 5 * np.sqrt(0.2 / n)
    bits = pulses.reshape(-1, 2)
    assert abs((bits[:, 0] * bits[:, 1]).mean()) < 5 * 0.2 / np.sqrt(len(bits))


def test_a_certain_pulse_comes_at_every_step():
    task = flip_flop(5, probability=1, noise=0, rng=0)
    assert (abs(task.inputs) == 1).all()
    np.testing.assert_array_equal(task.inputs, task.targets)


def test_integral_is_the_scaled_running_sum_of_the_clean_drive():
    task, clean = integration(20, rng=0, dtype="float64"), integration(20, rng=0, noise=0)
    drive = integration(20, rng=0, noise=0, dtype="float64").inputs.values[..., 0]
    for trial in range(20):
        total = 0.0
        for t in range(90):
            total += drive[trial, t]
            assert task.targets.values[trial, t, 0] == pytest.approx(total / np.sqrt(90), abs=1e-12)
    np.testing.assert_array_equal(task.total, task.targets[:, -1, 0])
    np.testing.assert_array_equal(task.targets.astype("float32"), clean.targets)


def test_random_integrals_spread_with_the_square_root_of_time():
    targets = integration(20000, steps=25, rng=0, noise=0, dtype="float64").targets.values[..., 0]
    variance = targets.var(axis=0)
    expected = np.arange(1, 26) / 25
    # five standard errors of a variance
    assert (abs(variance - expected) < 5 * expected * np.sqrt(2 / 20000)).all()


def test_even_drives_have_evenly_spaced_integrals():
    task = integration(9, drive="even", noise=0, steps=7, dtype="float64")
    np.testing.assert_allclose(task.total, np.arange(-2, 2.5, 0.5), rtol=0, atol=1e-14)
    slope = np.diff(task.targets.values[..., 0], axis=1)
    np.testing.assert_allclose(slope, np.repeat(task.total.values[:, None] / 7, 6, 1), atol=1e-14)
    assert integration(1, drive="even", noise=0).total == 0


def test_forecast_is_the_next_observation():
    task = low_rank_forecast(6, channels=8, latents=3, horizon=4, steps=12, noise=0, rng=0)
    np.testing.assert_array_equal(task.targets[:, :-4], task.inputs[:, 4:])


def test_forecast_follows_a_rotation_of_the_latent_state():
    options = {"channels": 12, "latents": 4, "noise": 0, "dtype": "float64"}
    task = low_rank_forecast(40, horizon=2, rng=0, **options)
    x, y = task.inputs.values, task.targets.values
    observation = np.linalg.lstsq(task.start.values, x[:, 0], rcond=None)[0].T  # C
    np.testing.assert_allclose(observation.T @ observation, 3 * np.eye(4), atol=1e-12)
    latent = x @ np.linalg.pinv(observation).T
    np.testing.assert_allclose(latent @ observation.T, x, atol=1e-12)
    before, after = latent[:, :-1].reshape(-1, 4), latent[:, 1:].reshape(-1, 4)
    rotation = np.linalg.lstsq(before, after, rcond=None)[0].T  # F
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(4), atol=1e-10)
    np.testing.assert_allclose(y, latent @ (observation @ rotation @ rotation).T, atol=1e-10)
    # of the same system, whatever the trials
    other = low_rank_forecast(40, horizon=2, rng=1, **options)
    there = np.linalg.lstsq(other.start.values, other.inputs.values[:, 0], rcond=None)[0].T
    np.testing.assert_allclose(there, observation, atol=1e-12)


def test_latent_rotations_are_slow():
    task = low_rank_forecast(40, channels=60, latents=50, noise=0, steps=30, rng=0, dtype="float64")
    x = task.inputs.values
    before, after = x[:, :-1].reshape(-1, 60), x[:, 1:].reshape(-1, 60)
    step = np.linalg.pinv(before, rcond=1e-10) @ after
    eigenvalues = np.linalg.eigvals(step)
    turning = eigenvalues[abs(eigenvalues) > 0.5]
    assert len(turning) == 50
    np.testing.assert_allclose(abs(turning), 1, atol=1e-9)
    assert 0.2 < abs(np.angle(turning)).max() < 0.35


def test_observations_have_unit_variance_and_the_rank_of_the_latents():
    x = low_rank_forecast(4000, channels=20, latents=3, noise=0, rng=0, dtype="float64").inputs
    flat = x.values.reshape(-1, 20)
    singular = np.linalg.svd(flat, compute_uv=False)
    assert singular[2] > 1e-2 * singular[0] and singular[3] < 1e-12 * singular[0]
    # |x|^2 / 20 is chi-square with 3 degrees over 3, the same at all times of a trial
    assert abs(np.square(flat).mean() - 1) < 5 * np.sqrt(2 / 3 / 4000)


def test_even_starts_lie_evenly_on_a_circle():
    start = low_rank_forecast(8, channels=9, latents=4, starts="even", noise=0).start.values
    angle = 2 * np.pi * np.arange(8) / 8
    expected = np.zeros((8, 4))
    expected[:, 0], expected[:, 1] = 2 * np.cos(angle), 2 * np.sin(angle)
    np.testing.assert_allclose(start, expected, rtol=0, atol=1e-14)


def test_one_hot_trials_show_and_ask_for_their_stimulus():
    task = memory_pro_one_hot(7, n_stimuli=5, stimuli="even", noise=0, steps=(2, 3, 4))
    assert task.stimulus.values.tolist() == [1, 2, 3, 4, 5, 1, 2]
    for trial in range(7):
        shown = np.eye(5)[trial % 5]
        inputs = [[1, *shown]] * 2 + [[1, *shown * 0]] * 3 + [[0, *shown * 0]] * 4
        targets = [[1, *shown * 0]] * 5 + [[0, *shown]] * 4
        np.testing.assert_array_equal(task.inputs[trial], inputs)
        np.testing.assert_array_equal(task.targets[trial], targets)


def test_random_stimuli_are_uniform():
    stimulus = memory_pro_one_hot(6000, n_stimuli=4, steps=(1, 1, 1), rng=0).stimulus.values
    counts = np.bincount(stimulus, minlength=5)
    assert counts[0] == 0
    assert (abs(counts[1:] - 1500) < 5 * np.sqrt(6000 * 0.25 * 0.75)).all()


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        (flip_flop, {"bits": 0}, "bits=0: choose an int of 1 or more"),
        (flip_flop, {"steps": 0}, "steps=0"),
        (flip_flop, {"probability": 0.0}, "probability=0.0"),
        (flip_flop, {"probability": 1.5}, "probability=1.5"),
        (integration, {"drive": "evenly"}, "drive='evenly': use 'random' or 'even'"),
        (integration, {"steps": 0}, "steps=0"),
        (low_rank_forecast, {"latents": 1}, "latents=1: choose an int of 2 or more"),
        (low_rank_forecast, {"channels": 9}, "channels=9: choose an int of 10 or more"),
        (low_rank_forecast, {"horizon": 0}, "horizon=0"),
        (low_rank_forecast, {"starts": "evenly"}, "starts='evenly'"),
        (memory_pro_one_hot, {"n_stimuli": 0}, "n_stimuli=0"),
        (memory_pro_one_hot, {"stimuli": "evenly"}, "stimuli='evenly'"),
        (memory_pro_one_hot, {"steps": (1, 1)}, r"steps=\(1, 1\): pass 3 positive ints"),
    ],
)
def test_wrong_use_raises_and_names_the_value(task, arguments, message):
    with pytest.raises(ValueError, match=message):
        task(3, **arguments)
