# SPDX-License-Identifier: Apache-2.0
"""Define the optimizers, one in each module, and what they share."""
