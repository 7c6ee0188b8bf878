# SPDX-License-Identifier: Apache-2.0
"""Used by tests/ and bench/ only: plain-torch references, the accuracy rule, timing."""
