"""Pools of one, two and three processes, which start when they are first used."""

import pytest
from pool import Pool


@pytest.fixture(scope="session")
def run():
    """``run(n, function, *args)``: what each of n processes returns, in the order of the ranks."""
    pools = {}

    def in_processes(n, function, *args):
        if n not in pools or not pools[n].members:
            pools[n] = Pool(n)
        return pools[n].run(function, *args)

    yield in_processes
    for pool in pools.values():
        pool.close()
