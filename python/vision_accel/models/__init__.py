# SPDX-License-Identifier: Apache-2.0
"""The models: one model, one file."""
