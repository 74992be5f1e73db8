"""What notebooks show: well-formed, complete, and safe with names of users."""

import re
import xml.etree.ElementTree as ET

import pytest
import torch
import xarray as xr

import kpops
from kpops.html import factors


@pytest.fixture(scope="module")
def lin():
    torch.manual_seed(0)
    gru = torch.nn.GRU(2, 64, batch_first=True)
    return kpops.linearize(gru, torch.randn(20, 90, 2), readout=torch.nn.Linear(64, 3))


def read(thing):
    """The page as a tree, the rows of its table, and the boxes that are filled."""
    tree = ET.fromstring(thing._repr_html_().replace('xmlns="http://www.w3.org/2000/svg"', ""))
    rows = {row.find("th").text: row.find("td").text for row in tree.iter("tr")}
    svg = tree.find(".//svg")
    filled = svg.get("aria-label").split() if svg is not None else []
    shown = [rect.get("fill-opacity") for rect in tree.iter("rect")]
    assert sum(opacity != "0" for opacity in shown) == len(filled)
    return tree, rows, filled


def test_an_operator_shows_its_place_on_the_way_its_size_and_its_memory(lin):
    tree, rows, filled = read(lin.flow)
    assert filled == ["P*", "J*", "J", "P"]
    assert tree.find("strong").text == "P K P*"
    assert [t.text for t in tree.iter("text")] == ["Err", "P*", "J*", "J", "P", "dh", "K"]
    assert rows == {
        "on": "(trial: 20, time: 90, unit: 64)",
        "size": "115,200 x 115,200, float32 on cpu",
        "known": "positive semi-definite",
        "memory": "0.4395 MiB for a vector, 49.44 GiB for the matrix, if it were made",
        "model": "GRU, measure sum, engine gated_numba",
    }


def test_a_linearization_shows_the_whole_way_and_what_learns(lin):
    tree, rows, filled = read(lin)
    assert filled == ["C*", "P*", "J*", "J", "P", "C"]
    assert tree.find("strong").text == "Linearization of GRU"
    assert rows["states"] == "(trial: 20, time: 90, unit: 64)"
    assert rows["outputs"] == "(trial: 20, time: 90, output: 3)"
    assert rows["learning"].startswith("13,056 numbers in weight_ih_l0, weight_hh_l0, bias_ih_l0")
    assert rows["engine"].startswith("gated_numba: a gated cell; keeps 2.711 MiB")
    assert rows["known"] == "P in blocks of trials, K in blocks of units, gated"
    assert rows["memory"] == "0.4395 MiB for a vector"


def test_a_space_shows_its_dims_and_coordinates(lin):
    _, rows, filled = read(lin.space)
    assert not filled
    unit = "64, with layer, variable"
    assert rows == {"trial": "20", "time": "90", "unit": unit, "size": "115,200"}


def test_the_factors_at_hand_are_filled(lin):
    flow = {"P*", "J*", "J", "P"}
    for op, expected in [
        (lin.P, {"P"}),
        (lin.P.H, {"P*"}),
        (lin.J.H, {"J*"}),
        (lin.K_by_parameter["weight_hh_l0"], {"J*", "J"}),
        (-2 * lin.sensitivity, {"J", "P"}),
        (lin.sensitivity.H, {"P*", "J*"}),
        (lin.P @ lin.P.H, {"P", "P*"}),
        (lin.P.H + lin.K, {"P*", "J*", "J"}),
        (lin.output_ntk, flow | {"C", "C*"}),
        (lin.flow.select(trial=0), flow),
        (lin.K.partial_trace(keep=("time",), num_probes=2, rng=0), {"J*", "J"}),
        (lin.P_inv, set()),
    ]:
        assert factors(op) == expected
        assert set(read(op)[2]) == expected


def test_names_of_users_are_escaped():
    class Cell(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.ParameterDict({"<b>&": torch.nn.Parameter(torch.eye(3))})

        def forward(self, x, h):
            return torch.tanh(h @ self.w["<b>&"]) + x

    Cell.__name__ = "<script>alert(1)</script>"
    inputs = xr.DataArray(
        torch.zeros(2, 4, 3).numpy(),
        dims=("trial", "time", "input"),
        coords={"<i>": ("trial", [1.0, 2.0])},
    )
    lin = kpops.linearize(Cell(), inputs, h0=torch.zeros(3))
    (K,) = lin.K_by_parameter.values()
    for thing in (lin, K, lin.space):
        assert not re.search("<script|<b>|<i>", thing._repr_html_())
        read(thing)
    assert read(lin)[0].find("strong").text == "Linearization of <script>alert(1)</script>"
    assert read(K)[0].find("strong").text == "K[w.<b>&]"
    assert read(lin.space)[1]["trial"] == "2, with <i>"


def test_colours_are_those_of_the_page(lin):
    page = lin.flow._repr_html_()
    assert set(re.findall(r'(?:fill|stroke)="([^"]*)"', page)) == {
        "currentColor",
        "none",
        "#4c78a8",
    }
    assert "background" not in page
