# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _tensors_on_the_gpu() -> Iterator[None]:
    """Tensors that a test makes are on the GPU unless it says otherwise."""
    with torch.device("cuda"):
        yield
