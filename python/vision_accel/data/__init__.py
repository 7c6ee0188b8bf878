# SPDX-License-Identifier: Apache-2.0
"""Image sources, preprocessing, augmentation, samplers."""
