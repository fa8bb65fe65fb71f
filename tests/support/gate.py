# SPDX-License-Identifier: Apache-2.0
"""An operator that waits until it is told to go on.

In a file of its own: a test file that another one imports is loaded twice, and the second would put
its operator in the place of the first's.
"""

import threading

import mxnet as mx

import mxadamax  # noqa: F401


class Gate(mx.operator.CustomOp):
    """Hands its input on once `opened` is set."""

    opened = threading.Event()

    def forward(self, is_train, req, in_data, out_data, aux):
        self.opened.wait(30)
        self.assign(out_data[0], req[0], in_data[0])


@mx.operator.register("mxadamax_gate")
class GateProperty(mx.operator.CustomOpProp):
    def list_arguments(self):
        return ["data"]

    def list_outputs(self):
        return ["output"]

    def infer_shape(self, in_shape):
        return in_shape, [in_shape[0]], []

    def create_operator(self, ctx, shapes, dtypes):
        return Gate()


def gated(array):
    """A copy that is not there before the gate opens; whatever needs it stays in the queue."""
    return mx.nd.Custom(array, op_type="mxadamax_gate")
