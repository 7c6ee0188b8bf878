# SPDX-License-Identifier: Apache-2.0
"""Benchmarks. ``python -m bench models/vit --peers`` prints a table; ``pytest bench`` tracks commits."""
