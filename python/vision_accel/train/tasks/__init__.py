# SPDX-License-Identifier: Apache-2.0
"""What is trained: loss and metrics of one task per file."""
