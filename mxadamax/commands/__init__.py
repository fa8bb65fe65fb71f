# SPDX-License-Identifier: Apache-2.0
"""The commands of ``mxadamax``: one module for each, with `add_arguments` and `run`."""
