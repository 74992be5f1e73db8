"""The reader of published almost-linear RNNs. KPOPS_ALRNN may name the file lorenz_m20_p2."""

import os
import pickle

import numpy as np
import pytest
import torch

import kpops
from kpops.reconstruction import cycles, published_alrnn, symbolic_code

REAL = os.environ.get("KPOPS_ALRNN")


def weights(n_units=6, n_features=3, seed=0):
    """Arrays of the published form: A is the diagonal of a matrix and keeps its strides."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {"W": (n_units, n_units), "h": (n_units,), "B": (n_features, n_units)}
    arrays = {name: torch.randn(shape, generator=generator) / 3 for name, shape in drawn.items()}
    return {"A": torch.diagonal(torch.rand(n_units, n_units, generator=generator)), **arrays}


@pytest.fixture
def path(tmp_path):
    torch.save(weights(), tmp_path / "lorenz_m6_p2")
    return tmp_path / "lorenz_m6_p2"


def test_the_cell_takes_the_published_step(path):
    known, read = weights(), published_alrnn(path)
    z = torch.randn(7, 6, generator=torch.Generator().manual_seed(1))
    bent = torch.cat([z[:, :4], z[:, 4:].clamp_min(0)], 1)
    expected = known["A"] * z + bent @ known["W"].T + known["h"]
    assert torch.allclose(read.cell(torch.zeros(7, 0), z), expected, rtol=1e-6, atol=1e-6)
    assert read.cell.rectified == 2 and read.cell.A.is_contiguous()
    assert [n for n, p in read.cell.named_parameters() if p.numel()] == ["A", "W", "b"]


def test_observations_are_the_first_units_and_b_starts_the_others(path):
    read, x = published_alrnn(path), torch.randn(4, 5, 3)
    h = read.start(x)
    assert torch.equal(read.observe(h), x)
    assert torch.allclose(h[..., 3:], x @ weights()["B"][:, 3:], rtol=1e-6, atol=1e-6)


def test_float64_holds_the_published_numbers(path):
    read = published_alrnn(str(path), dtype=torch.float64)
    assert {p.dtype for p in read.cell.parameters()} == {read.B.dtype} == {torch.float64}
    assert torch.equal(read.cell.W.float(), weights()["W"])


def test_the_number_of_relus_is_given_or_in_the_name(tmp_path):
    torch.save(weights(), tmp_path / "mine.pt")
    assert published_alrnn(tmp_path / "mine.pt", rectified=3).cell.rectified == 3
    torch.save(weights(), tmp_path / "mine_p4.pt")
    assert published_alrnn(tmp_path / "mine_p4.pt").cell.rectified == 4
    with pytest.raises(ValueError, match=r"mine.pt does not end .*: pass rectified="):
        published_alrnn(tmp_path / "mine.pt")
    with pytest.raises(ValueError, match="rectified=7: choose an int from 0 to 6"):
        published_alrnn(tmp_path / "mine.pt", rectified=7)
    with pytest.raises(TypeError, match=r"dtype=torch\.float16"):
        published_alrnn(tmp_path / "mine.pt", rectified=3, dtype=torch.float16)


class Trap:
    """Unpickling this would make a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("save", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_code_in_a_file_is_refused_and_never_run(tmp_path, save):
    path, folder = tmp_path / "wrong_p2", tmp_path / "made"
    save({**weights(), "A": Trap(str(folder))}, path)
    with pytest.raises(ValueError, match="wrong_p2 is no file of plain tensors"):
        published_alrnn(path)
    assert not folder.exists()


def without(name):
    return {key: value for key, value in weights().items() if key != name}


WRONG = [
    (without("B"), r"contains a dict of \['A', 'W', 'h'\], expected the tensors A, W, h and B"),
    ({**weights(), "C": torch.zeros(1)}, "contains a dict of"),
    ([torch.zeros(2)], "contains a list of 1"),
    ({**weights(), "A": torch.rand(5)}, r"shapes \{'A': \(5,\), 'W': \(6, 6\).*expected"),
    ({**weights(), "A": torch.rand(6, 6)}, "has arrays of shapes"),
    ({**weights(), "B": torch.rand(7, 6)}, "has arrays of shapes"),
    ({**weights(), "h": 0.5}, "'h': None"),
    ({**weights(), "h": torch.full((6,), np.nan)}, "h are not finite real numbers"),
    ({**weights(), "W": torch.zeros(6, 6, dtype=torch.int64)}, "W are not finite real numbers"),
]


@pytest.mark.parametrize(("content", "message"), WRONG)
def test_files_of_another_form_are_refused_by_name(tmp_path, content, message):
    torch.save(content, tmp_path / "other_p2")
    with pytest.raises(ValueError, match=rf"other_p2.*{message}"):
        published_alrnn(tmp_path / "other_p2")


def test_what_is_no_weights_at_all_is_refused_by_name(tmp_path, path):
    (tmp_path / "text_p2").write_text("A, W, h, B\n")
    (tmp_path / "cut_p2").write_bytes(path.read_bytes()[:900])
    (tmp_path / "empty_p2").write_bytes(b"")
    np.save(tmp_path / "numbers_p2.npy", np.zeros(3))
    for name in ("text_p2", "cut_p2", "empty_p2", "numbers_p2.npy"):
        with pytest.raises(ValueError, match=f"{name} is no file of plain tensors"):
            published_alrnn(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="none_p2"):
        published_alrnn(tmp_path / "none_p2")


if REAL:

    @pytest.mark.slow
    def test_the_published_lorenz_network_visits_three_regions_and_has_its_exponents():
        read = published_alrnn(REAL, dtype=torch.float64)
        assert read.cell.hidden_size == 20 and len(read.B) == 3
        x = torch.linspace(-1, 1, 20, dtype=torch.float64)[:, None].expand(-1, 3)
        still = torch.zeros(20, 11_000, 0, dtype=torch.float64)
        lin = kpops.linearize(read.cell, still, h0=read.start(x))
        spectrum = kpops.lyapunov_spectrum(lin, transient=1000, frame_transient=0, rng=0)
        code = symbolic_code(read.cell, lin.states[:, 999:-1])
        assert sorted(code.bits.values) == ["01", "10", "11"]
        # From 1.2 million steps: 0.0092 and -0.0006; a run of 10,000 is known to 0.0014 and 0.0008
        assert abs(spectrum.exponent[:2] - [0.0092, -0.0006]).max() < 1e-3
        total = float(spectrum.exponent.sum())
        assert abs(total + 7.86) < 0.05
        assert abs(total - float(spectrum.mean_log_det)) < 1e-6
        assert abs(total - float((code.share * code.log_determinant).sum())) < 1e-6
        points = cycles(read.cell)
        assert points.bits.values.ravel().tolist() == ["11", "10", "01", "00"]
        assert points.n_unstable.values.tolist() == [1, 2, 2, 3] and (points.speed < 1e-14).all()
