"""Functions run in several processes that share a process group, as torchrun would start them.

    with Pool(2) as pool:
        both = pool.run(function, *arguments)

The function is one of a module that a new process can import, and is called with the arguments in
every process; their results come back in the order of the ranks. Processes live until the pool is
closed, since importing kpops takes seconds. What hangs is ended, and its traceback printed.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import tempfile
import time
import traceback
from datetime import timedelta
from pathlib import Path
from unittest import mock

WAIT = 60.0  # seconds until a call counts as hung
GROUP_TIMEOUT = 30.0


class Pool:
    """Processes that wait for calls.

    They find each other by a file, and give each other up after `timeout` seconds.
    """

    def __init__(self, n: int, timeout: float = GROUP_TIMEOUT) -> None:
        self.folder = tempfile.TemporaryDirectory()
        context = multiprocessing.get_context("spawn")
        self.members = []
        store = str(Path(self.folder.name) / "store")
        with mock.patch.dict("os.environ", OMP_NUM_THREADS="1"):
            for rank in range(n):
                here, there = context.Pipe()
                arguments = (there, rank, n, store, timeout)
                process = context.Process(target=_serve, args=arguments, daemon=True)
                process.start()
                there.close()
                self.members.append((process, here))

    def run(self, function, *args):
        """What `function(*args)` returns in each process; raises if one of them did."""
        answers = self.answers(function, *args)
        wrong = [f"process {r}: {a[1]}" for r, a in enumerate(answers) if a[0] != "result"]
        assert not wrong, "\n".join(wrong)
        return [result for _, result in answers]

    def answers(self, function, *args):
        """Pairs: "result" and what was returned, "error" and a traceback, or "ended" and a code."""
        for _, connection in self.members:
            connection.send((function, args))
        until = time.monotonic() + WAIT
        answers = [self._answer(member, until) for member in self.members]
        if any(kind != "result" for kind, _ in answers):
            self.close()  # the others may be out of step
        return answers

    def _answer(self, member, until):
        process, connection = member
        if not connection.poll(max(0.0, until - time.monotonic())):
            return "hung", f"no answer within {WAIT} s; its traceback is on stderr"
        try:
            return connection.recv()
        except (EOFError, ConnectionResetError):
            process.join()
            return "ended", process.exitcode

    def close(self) -> None:
        for process, connection in self.members:
            connection.close()
            process.kill()
            process.join()
        self.members = []
        self.folder.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _serve(connection, rank, n, store, timeout):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=n,
        timeout=timedelta(seconds=timeout),
    )
    while True:
        try:
            function, args = connection.recv()
        except EOFError:
            break
        faulthandler.dump_traceback_later(WAIT - 5)
        try:
            answer = ("result", function(*args))
        except Exception:
            answer = ("error", traceback.format_exc())
        faulthandler.cancel_dump_traceback_later()
        connection.send(answer)


def error_of(function, *args):
    """Name and text of the exception that a call raises, for tests of what all processes say."""
    try:
        function(*args)
    except Exception as error:
        return type(error).__name__, str(error)
    return "no error", ""
