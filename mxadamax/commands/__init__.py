"""The commands of ``mxadamax``: one module for each, with `add_arguments` and `run`."""
