# SPDX-License-Identifier: Apache-2.0
"""Files that appear under their name only when complete."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write; it takes the name ``path`` when the block ends well and vanishes otherwise.

    An unwritable place is an OSError naming ``path`` at once, before the work that fills the file.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    if path.is_dir():
        raise IsADirectoryError(21, "is a folder, not a file", str(path))
    try:
        file = part.open("wb")
    except OSError as error:
        raise type(error)(error.errno, f"cannot write: {error.strerror}", str(path)) from None
    try:
        with file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
