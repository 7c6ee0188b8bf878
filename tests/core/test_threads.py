# SPDX-License-Identifier: Apache-2.0
"""Threads, OpenMP and fork. Each case runs in a process of its own, so that its threads are the only ones."""

import subprocess
import sys
import textwrap

import pytest

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

COMMON = """
import os, sys, threading
def runtimes():
    with open("/proc/self/maps") as f:
        paths = {line.split()[-1] for line in f if ".so" in line}
    return sorted(p for p in paths if any(n in os.path.basename(p) for n in ("libgomp", "libomp", "libiomp")))
def tasks():
    return len(os.listdir("/proc/self/task"))
"""
TORCH = """
import torch
from vision_accel import _C, ops
x = torch.linspace(-4, 4, 1_000_000)
def work():
    return ops.activation(x, "gelu")
"""
NUMPY = """
import numpy as np
from vision_accel import _C
x = np.linspace(-4, 4, 1_000_000, dtype="f4")
def work():
    y = np.empty_like(x)
    _C.activation_forward(x, y, "gelu", 0)
    return y
"""


def run(*code):
    """Run the pieces as one program, which must print ok at its end and finish in time."""
    program = "\n".join(textwrap.dedent(piece) for piece in (COMMON, *code))
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["ok"], result.stdout


@linux
def test_torch_set_num_threads_is_obeyed():
    run(
        "import torch; torch.set_num_threads(1)",  # before anything starts a second thread
        TORCH,
        """
        before = tasks()
        one = work()
        assert _C.max_threads() == 1
        assert tasks() == before, "a thread was started"
        torch.set_num_threads(3)
        assert _C.max_threads() == 3
        assert torch.equal(work(), one)
        assert tasks() > before, "no thread was started"
        print("ok")
        """,
    )


@linux
@pytest.mark.parametrize("first", ["torch", "vision_accel", "vision_accel, after work"])
def test_one_openmp_runtime_in_either_order(first):
    start = {
        "torch": "import torch; import vision_accel",
        "vision_accel": "import vision_accel; import torch",
        "vision_accel, after work": NUMPY + "\n_C.set_own_threads(2); y = work()\n"
        "assert _C.threading_backend() == 'own pool'; own = y.tobytes()",
    }[first]
    run(
        start,
        TORCH,
        """
        torch.set_num_threads(2)
        y = work()
        (x @ x, torch.randn(300, 300) @ torch.randn(300, 300))
        assert len(runtimes()) == 1, runtimes()
        assert _C.threading_backend() == "openmp (shared)"
        print("ok")
        """,
    )


@linux
def test_own_pool_without_torch():
    run(
        NUMPY,
        """
        assert _C.threading_backend() == "own pool"
        _C.set_own_threads(1)
        before = tasks()
        one = work()
        assert tasks() == before
        _C.set_own_threads(3)
        for _ in range(20):
            assert np.array_equal(work(), one)
        assert tasks() == before + 2
        assert "torch" not in sys.modules
        assert not runtimes()
        print("ok")
        """,
    )


FORK = """
if "torch" in sys.modules:
    torch.set_num_threads(2)
else:
    _C.set_own_threads(2)
expected = bytes(memoryview(work().numpy() if "torch" in sys.modules else work()).cast("B"))
"""


@pytest.mark.parametrize("library", [TORCH, NUMPY], ids=["torch", "numpy"])
def test_fork_after_a_parallel_region(library):
    run(
        library,
        FORK,
        """
        import signal, warnings
        warnings.simplefilter("ignore")
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # a hang ends with a signal
            y = work()
            same = bytes(memoryview(y.numpy() if "torch" in sys.modules else y).cast("B")) == expected
            os._exit(0 if same and _C.threading_backend() == "serial (forked child)" else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        work()  # the parent still has its threads
        print("ok")
        """,
    )


def test_workers_of_a_data_loader():
    run(
        TORCH,
        FORK,
        """
        import warnings
        warnings.simplefilter("ignore")
        class Set(torch.utils.data.Dataset):
            def __len__(self):
                return 4
            def __getitem__(self, i):
                return work()
        loader = torch.utils.data.DataLoader(Set(), num_workers=2, multiprocessing_context="fork", timeout=60)
        for batch in loader:
            assert bytes(memoryview(batch[0].numpy()).cast("B")) == expected
        print("ok")
        """,
    )


def test_python_threads_run_kernels_at_once():
    run(
        TORCH,
        """
        torch.set_num_threads(2)
        inputs = [torch.randn(300, 1000) + i for i in range(4)]
        expected = [ops.activation(x, "gelu") for x in inputs]
        wrong = []
        def repeat(i):
            for _ in range(50):
                if not torch.equal(ops.activation(inputs[i], "gelu"), expected[i]):
                    wrong.append(i)
        threads = [threading.Thread(target=repeat, args=(i,)) for i in range(4)]
        for t in threads: t.start()
        for t in threads: t.join(60)
        assert not any(t.is_alive() for t in threads) and not wrong, wrong
        print("ok")
        """,
    )


def test_python_threads_share_the_own_pool():
    run(
        NUMPY,
        """
        _C.set_own_threads(2)
        expected = work()
        wrong = []
        def repeat():
            for _ in range(20):
                if not np.array_equal(work(), expected):
                    wrong.append(1)
        threads = [threading.Thread(target=repeat) for _ in range(4)]
        for t in threads: t.start()
        for t in threads: t.join(60)
        assert not any(t.is_alive() for t in threads) and not wrong
        print("ok")
        """,
    )


def test_kernels_release_the_gil():
    run(
        TORCH,
        """
        import time
        torch.set_num_threads(1)
        ticks = 0
        stop = False
        def tick():
            global ticks
            while not stop:
                time.sleep(0.0005)
                ticks += 1
        x = torch.randn(4_000_000).double()  # C library calls: a second or so
        y = torch.empty_like(x)
        ticker = threading.Thread(target=tick)
        ticker.start()
        before = ticks
        _C.activation_forward(x, y, "gelu", 0)
        during = ticks - before
        stop = True
        ticker.join()
        assert during > 10, f"another thread ran {during} times during the kernel"
        print("ok")
        """,
    )
