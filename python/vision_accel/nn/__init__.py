# SPDX-License-Identifier: Apache-2.0
"""Modules that own parameters, built on ops."""
