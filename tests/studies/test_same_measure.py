"""Whether two measures are the same, and where a measure is found."""

import functools
import importlib.util
import runpy
import subprocess
import sys
import types

import measures
import numpy as np

from kpops.studies.identity import describe, find


def scaled(factor, values=(1, 2)):
    def measure(g):
        # a comment
        return {"x": factor * g, "y": values[0]}

    return measure


def hash_of(measure):
    return describe(measure)["hash"]


def test_a_measure_is_its_source_and_what_it_encloses():
    assert hash_of(scaled(1)) == hash_of(scaled(1)) != hash_of(scaled(2))
    assert hash_of(scaled(np.arange(2000))) == hash_of(scaled(np.arange(2000)))
    other = np.arange(2000)
    other[1000] = 0
    assert hash_of(scaled(other)) != hash_of(scaled(np.arange(2000)))


def test_comments_do_not_count():
    def measure(g):
        return {"x": g}

    first = hash_of(measure)

    def measure(g):
        return {  # another comment
            "x": g
        }

    assert hash_of(measure) == first

    def measure(g):
        return {"x": -g}

    assert hash_of(measure) != first


def test_a_lambda_is_compared_without_the_statement_around_it(tmp_path):
    def first(text):
        file = tmp_path / f"m{len(list(tmp_path.iterdir()))}.py"
        file.write_text(text)
        return hash_of(runpy.run_path(str(file))["made"][0])

    one = first('made = [lambda g: {"x": g}, 1]\n')
    assert one == first('made = [\n    lambda g: {"x": g},  # a comment\n    1, 2]\n')
    assert one != first('made = [lambda g: {"x": -g}, 1]\n')


def test_a_function_without_source_is_its_code():
    def typed(result):
        found = {}
        exec(f"def f(g): return {result}", found)  # as in a session of plain Python
        return hash_of(found["f"])

    results = ["g", "-g", "g + 1", "g + 2", "(lambda: g)()"]
    assert len({*map(typed, results)}) == 5 and typed(results[4]) == typed(results[4])


def test_what_refers_to_itself_or_is_long_is_compared_too():
    def cyclic(value):
        found = types.SimpleNamespace(value=value)
        found.itself = [found]
        return found

    def long(value):
        found = np.zeros(2000)
        found[1000] = value  # which its repr leaves out
        return types.SimpleNamespace(found=found)

    for make in (cyclic, long):
        assert hash_of(scaled(make(1))) == hash_of(scaled(make(1))) != hash_of(scaled(make(2)))


def test_defaults_partials_methods_and_instances():
    def made(value):
        def measure(g, scale=value):
            return {"x": g * scale}

        return measure

    class Measure:
        def __init__(self, factor):
            self.factor = factor

        def __call__(self, g):
            return {"x": g * self.factor}

        def method(self, g):
            return {"x": g * self.factor}

    for make in (
        made,
        Measure,
        lambda v: functools.partial(made(1), scale=v),
        lambda v: Measure(v).method,
    ):
        assert hash_of(make(1)) == hash_of(make(1)) != hash_of(make(2))


def test_a_function_of_a_module_is_found_again():
    told = describe(measures.drawn)["where"]
    assert told["module"] == "measures" and find(told) is measures.drawn
    assert describe(lambda g: g)["where"] is None and describe(scaled(1))["where"] is None
    assert describe(functools.partial(measures.drawn, seed=1))["where"] is None


def test_a_function_of_a_page_that_is_built_has_no_place(monkeypatch):
    """Sphinx-Gallery runs a script as a module __main__ without a file."""
    page = importlib.util.module_from_spec(importlib.util.spec_from_loader("__main__", None))
    exec("def measure(g): return {}", page.__dict__)
    monkeypatch.setitem(sys.modules, "__main__", page)
    assert describe(page.measure)["where"] is None


SCRIPT = """
import sys
import kpops
import helper  # beside the script

def measure(g, seed):
    if g == 2 and seed == 1:
        raise ValueError("too large")
    return {"x": helper.scale * g + seed}

assert __name__ in ("__main__", "__mp_main__")
if __name__ == "__main__":
    print(kpops.Study(sys.argv[1], measure, g=[1, 2], seed=[0, 1]))
"""


def test_a_point_of_a_script_is_computed_from_the_command_line(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "helper.py").write_text("scale = 10")
    script, store = tmp_path / "scripts" / "script.py", tmp_path / "study.zarr"
    script.write_text(SCRIPT)

    def run(*arguments):
        return subprocess.run(
            [sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=tmp_path
        )

    made = run(script, store)
    assert "(g: 2, seed: 2): 0 of 4 points done" in made.stdout, made.stderr
    point = run("-m", "kpops.studies", store, 2)
    assert (point.returncode, point.stderr) == (0, "")
    failed = run("-m", "kpops.studies", store, 3)
    assert failed.returncode == 1 and "point 3 (g=2, seed=1) failed" in failed.stderr
    assert "ValueError: too large" in failed.stderr
    state = run("-m", "kpops.studies", store)
    assert "1 of 4 points done, 1 failed" in state.stdout and "missing: 0,1,3" in state.stdout
    assert run("-m", "kpops.studies", store, 4).stderr == "index=4: choose an int from 0 to 3\n"
    assert "is no study yet" in run("-m", "kpops.studies", tmp_path / "none", 0).stderr
    script.write_text(SCRIPT.replace("10", "10").replace("+ seed", "- seed"))
    changed = run("-m", "kpops.studies", store, 0)
    assert changed.returncode == 1 and "which has changed since" in changed.stderr
