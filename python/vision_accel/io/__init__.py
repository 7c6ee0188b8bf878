# SPDX-License-Identifier: Apache-2.0
"""Checkpoint layouts: reading and writing, no model maths."""
