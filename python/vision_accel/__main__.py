# SPDX-License-Identifier: Apache-2.0
"""``python -m vision_accel`` is ``vision-accel``."""

import sys

from vision_accel.cli import main

sys.exit(main())
