# SPDX-License-Identifier: Apache-2.0
"""What a demo raises."""


class DemoError(RuntimeError):
    """The demo ran but did not show what it must."""
