# SPDX-License-Identifier: Apache-2.0
"""The kernels for GPUs on a GPU, with PyTorch's or CuPy's arrays. Needs no MXNet."""

from __future__ import annotations

from mxadamax import _native, cuda

import numpy as np
import pytest
from bits import assert_same_bits
from cuda_cases import OnEveryDevice
from cuda_tensors import SCALARS, Kernels


def on_a_gpu():
    """The kernels, with bytes moved by whichever of PyTorch and CuPy finds a GPU."""
    try:
        native = cuda.kernels()
    except ImportError as error:
        return str(error)
    if native.device_count() == 0:
        return "CUDA's driver offers no GPU"
    try:
        import torch

        if torch.cuda.is_available():

            def upload(raw):
                held = torch.from_numpy(raw).cuda()
                return held, held.data_ptr()

            return Kernels(native, upload, lambda held: held.cpu().numpy())
    except ImportError:
        pass
    try:
        import cupy
    except ImportError:
        return "neither PyTorch nor CuPy finds a GPU"

    def upload_by_cupy(raw):
        held = cupy.asarray(raw)
        return held, held.data.ptr

    return Kernels(native, upload_by_cupy, lambda held: held.get())


KERNELS = on_a_gpu()
if isinstance(KERNELS, str):
    pytest.skip(KERNELS, allow_module_level=True)


@pytest.fixture
def kernels():
    return KERNELS


class TestOnAGpu(OnEveryDevice):
    """The same as on the host."""


@pytest.fixture
def torch():
    found = pytest.importorskip("torch")
    if not found.cuda.is_available():
        pytest.skip("PyTorch finds no GPU")
    return found


def scalars(rule="adamax"):
    return {name: SCALARS[name] for name in _names(rule)}


def _names(rule):
    return cuda.kernels().rules[rule][1]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_tensors_of_torch(torch, dtype):
    kind = getattr(torch, dtype)
    arrays = [torch.randn(1001).abs().to(kind) for _ in range(4)]
    there = [array.cuda() for array in arrays]
    cuda.update("adamax", there[:1], there[1:2], [there[2:]], scalars())
    numbers = [
        array.to(torch.float32 if torch.finfo(kind).bits < 32 else kind).numpy() for array in arrays
    ]
    _native.update_numpy("adamax", numbers[:1], numbers[1:2], [numbers[2:]], scalars())
    for found, expected in zip(there, numbers):
        wanted = torch.from_numpy(expected).to(kind)
        assert torch.equal(found.cpu(), wanted)


def test_a_stream_is_followed(torch):
    """Gradients that are still being computed on the stream are waited for, by the stream."""
    count = 1 << 22
    expected = [np.full(count, x, np.float32) for x in (1.0, 3.0, 0.5, 0.5)]
    there = [torch.from_numpy(x).cuda() for x in expected]
    stream = torch.cuda.Stream()
    batch = cuda.Batch("adamax", there[:1], there[1:2], [there[2:]], stream=stream)
    # The first update brings the tables and the kernel to the device.
    there[1].fill_(3.0)
    torch.cuda.synchronize()
    batch.update(scalars(), stream=stream)
    torch.cuda.synchronize()
    there[1].zero_()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        there[1].fill_(3.0)
    batch.update(scalars(), stream=stream)
    # The host was not made to wait.
    assert not stream.query()
    other = torch.cuda.Stream()
    batch.update(scalars(), stream=other)
    other.synchronize()
    for _ in range(3):
        _native.update_numpy("adamax", expected[:1], expected[1:2], [expected[2:]], scalars())
    for found, wanted in zip(there, expected):
        assert_same_bits(found.cpu().numpy(), wanted)


def test_memory_of_the_host_is_refused(torch):
    there = [torch.ones(8, device="cuda") for _ in range(3)]
    with pytest.raises(ValueError, match="tensor 0: gradient is on the CPU, expected a CUDA"):
        cuda.update("adamax", there[:1], [torch.ones(8)], [there[1:]], scalars())
    native, address = cuda.kernels(), np.zeros(8, np.float32)
    entry = ("float32", 8, address.ctypes.data, there[0].data_ptr(), [], 0, 0, None, None)
    with pytest.raises(native.TensorError, match="gradient is memory .*, expected memory of dev"):
        native.Batch("sgd", [entry], 0)
