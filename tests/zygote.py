# SPDX-License-Identifier: Apache-2.0
"""Training runs in processes of their own, to be killed.

A server process imports everything once and forks a child per run, which saves the seconds of importing
torch. It runs nothing itself, so that the children start with no threads.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Child:
    """A run in progress."""

    zygote: "Zygote"
    pid: int
    log: Path

    def wait(self) -> int:
        """Exit code; negative: the signal that ended it."""
        code = int(self.zygote.ask({"wait": self.pid}))
        return code

    def wait_for(self, path: Path, text: str = "") -> None:
        """Until a file is there and contains a text."""
        end = time.monotonic() + 60
        while not (path.exists() and text in path.read_text()):
            assert time.monotonic() < end, f"{path} never came: {self.log.read_text()}"
            time.sleep(0.005)


class Zygote:
    """The client's side of the server."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).resolve())]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._server = subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=env, cwd=Path.cwd())

    def ask(self, request: dict[str, Any]) -> Any:
        """One request, one answer."""
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def start(self, config: Any, *, kill_at: int = 0, env: dict[str, str] | None = None) -> Child:
        """Start a run, in a process group of its own.

        Args:
            config: its options.
            kill_at: SIGKILL just before this operation of saving (1, 2, ...); 0: never. The log counts them.
            env: more environment variables.
        """
        log = Path(config.train.out).with_name(f"log-{time.monotonic_ns()}.txt")
        request = {"config": config.to_dict(), "kill_at": kill_at, "env": env or {}, "log": str(log)}
        return Child(self, self.ask(request), log)

    def close(self) -> None:
        """End the server."""
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait()


@contextmanager
def open_zygote() -> Iterator[Zygote]:
    """A server that ends with the block."""
    zygote = Zygote()
    try:
        yield zygote
    finally:
        zygote.close()


LATE = ("curves", "tasks.classify")  # what training imports when it needs it


def serve() -> None:
    """Take requests, one JSON object a line, until the client closes."""
    import safetensors.torch

    from vision_accel.train import checkpoint, fit, from_dict

    for name in ("torch._dynamo", "torch.distributed", *(f"vision_accel.train.{m}" for m in LATE)):
        importlib.import_module(name)

    def count_operations(kill_at: int) -> None:
        done = 0

        def counted(function: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal done
                done += 1
                if done == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                print(done, function.__qualname__, *[a for a in args if isinstance(a, Path)], flush=True)
                return function(*args, **kwargs)

            return call

        checkpoint.sync = counted(checkpoint.sync)
        safetensors.torch.save_file = counted(safetensors.torch.save_file)
        for name in ("mkdir", "rename", "replace", "write_text"):
            setattr(Path, name, counted(getattr(Path, name)))

    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            status = os.waitpid(request["wait"], 0)[1]
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        pid = os.fork()
        if pid:
            print(pid, flush=True)
            continue
        code = 1
        try:
            os.setpgid(0, 0)
            log = os.open(request["log"], os.O_WRONLY | os.O_CREAT)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.close(0)
            os.environ.update(request["env"])
            count_operations(request["kill_at"])
            result = fit(from_dict(request["config"]))
            print("stopped by", result.stopped_by)
            code = 0
        except BaseException as e:
            print(type(e).__name__, e)
        finally:
            sys.stdout.flush()
            os._exit(code)


if __name__ == "__main__":
    serve()
