# SPDX-License-Identifier: Apache-2.0
"""What a process does with an exception that MXNet drops, by its role in distributed training."""

import ctypes
import os
import sys

import mxnet as mx  # noqa: F401
import pytest

import mxadamax._mxnet.parameter_server

pytestmark = pytest.mark.quick

MESSAGE = "mxadamax: this parameter server ends here; MXNet would continue without the update\n"


def fail(*_):
    raise LookupError("lost")


def called_from_c(module):
    """Call a function of this module that raises, as MXNet calls an optimizer: from C."""

    def function():
        fail()

    function.__module__ = module
    ctypes.CFUNCTYPE(None)(function)()


@pytest.fixture
def codes(monkeypatch):
    """With which codes this process would have ended."""
    found = []
    monkeypatch.setattr(os, "_exit", found.append)
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    return found


@pytest.mark.parametrize("module", ["mxnet.kvstore.kvstore", "mxnet.kvstore.kvstore_server"])
def test_a_server_ends_with_a_code_that_says_so(module, codes, monkeypatch, capfd):
    monkeypatch.setenv("DMLC_ROLE", "server")
    mxadamax._mxnet.parameter_server.end_where_mxnet_would_go_on()
    called_from_c(module)
    assert codes == [1]
    text = capfd.readouterr().err
    assert "LookupError: lost" in text and text.endswith(MESSAGE)


@pytest.mark.parametrize("module", ["mxnet.operator", "my.training", None])
def test_a_server_goes_on_after_what_others_drop(module, codes, monkeypatch, capfd):
    monkeypatch.setenv("DMLC_ROLE", "server")
    mxadamax._mxnet.parameter_server.end_where_mxnet_would_go_on()
    called_from_c(module)
    assert codes == []
    text = capfd.readouterr().err
    assert "LookupError: lost" in text and MESSAGE not in text


@pytest.mark.parametrize("role", ["worker", "scheduler", "", None])
def test_other_processes_go_on(role, codes, monkeypatch, capfd):
    if role is None:
        monkeypatch.delenv("DMLC_ROLE", raising=False)
    else:
        monkeypatch.setenv("DMLC_ROLE", role)
    before = sys.unraisablehook
    mxadamax._mxnet.parameter_server.end_where_mxnet_would_go_on()
    assert sys.unraisablehook is before
    called_from_c("mxnet.kvstore.kvstore")
    assert codes == []
    text = capfd.readouterr().err
    assert "LookupError: lost" in text and MESSAGE not in text
