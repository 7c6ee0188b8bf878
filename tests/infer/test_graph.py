# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from vision_accel.infer import _graph


class Recorder:
    """Stands in for the capture of a CUDA graph: counts captures and replays."""

    def __init__(self):
        self.captures = 0

    def __call__(self, function, x):
        self.captures += 1
        return function


@pytest.fixture
def model():
    return torch.nn.Linear(4, 3).eval()


def call(model, x, recorder, name="logits"):
    with torch.inference_mode():
        return _graph._replay(model, name, model, x, recorder)


def test_on_a_cpu_the_function_runs(model):
    x = torch.randn(2, 4)
    assert torch.equal(_graph.run(model, "logits", model, x), model(x))
    assert model not in _graph._GRAPHS


def test_one_graph_for_each_shape_name_and_setting(model):
    recorder = Recorder()
    for _ in range(2):
        for x in (torch.randn(1, 4), torch.randn(2, 4)):
            for name in ("logits", "features"):
                assert torch.equal(call(model, x, recorder, name), model(x))
    assert recorder.captures == 4
    torch.use_deterministic_algorithms(True)
    try:
        call(model, torch.randn(1, 4), recorder)
    finally:
        torch.use_deterministic_algorithms(False)
    assert recorder.captures == 5


def test_edits_in_place_keep_graphs_and_new_memory_drops_them(model):
    recorder, x = Recorder(), torch.randn(1, 4)
    call(model, x, recorder)
    with torch.no_grad():
        model.weight.mul_(2)
    call(model, x, recorder)
    assert recorder.captures == 1
    model.weight = torch.nn.Parameter(torch.randn(3, 4))
    assert torch.equal(call(model, x, recorder), model(x))
    assert recorder.captures == 2
    assert len(_graph._GRAPHS[model]) == 1


def test_the_least_recently_used_graph_makes_room(model):
    recorder = Recorder()
    for batch in range(1, _graph.MAX_GRAPHS + 1):
        call(model, torch.randn(batch, 4), recorder)
    call(model, torch.randn(1, 4), recorder)  # now the latest
    call(model, torch.randn(_graph.MAX_GRAPHS + 1, 4), recorder)  # takes the place of batch 2
    captures = recorder.captures
    call(model, torch.randn(1, 4), recorder)
    assert recorder.captures == captures
    call(model, torch.randn(2, 4), recorder)
    assert recorder.captures == captures + 1
