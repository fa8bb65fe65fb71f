# SPDX-License-Identifier: Apache-2.0
"""The kernels for GPUs on a GPU, with PyTorch's or CuPy's arrays. Needs no MXNet."""

from __future__ import annotations

import numpy as np
import pytest
from bits import assert_same_bits
from cuda_cases import OnEveryDevice
from cuda_tensors import SCALARS, Kernels, on_the_host

from mxadamax import _native_testing, cuda


def on_a_gpu():
    """The kernels, with bytes moved by whichever of PyTorch and CuPy finds a GPU."""
    try:
        native = cuda.kernels()
    except ImportError as error:
        return str(error)
    if native.architectures == "host":
        # A rehearsal of scripts/gpu_check.
        return on_the_host(native)
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
    _native_testing.update_numpy("adamax", numbers[:1], numbers[1:2], [numbers[2:]], scalars())
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
        _native_testing.update_numpy(
            "adamax", expected[:1], expected[1:2], [expected[2:]], scalars()
        )
    for found, wanted in zip(there, expected):
        assert_same_bits(found.cpu().numpy(), wanted)


def test_memory_of_the_host_is_refused(torch):
    there = [torch.ones(8, device="cuda") for _ in range(3)]
    with pytest.raises(ValueError, match="tensor 0: gradient is on the CPU, expected a CUDA"):
        cuda.update("adamax", there[:1], [torch.ones(8)], [there[1:]], scalars())
    native, address = cuda.kernels(), np.zeros(8, np.float32)
    entry = ("float32", 8, address.ctypes.data, there[0].data_ptr(), [], 0, 0, None, None)
    with pytest.raises(native.TensorError, match="gradient is memory .*, expected memory of dev"):
        native.LaunchPlan("sgd", [entry], 0)


def test_steps_on_two_streams_that_nothing_waits_for(torch):
    """Scalars that change at every step reach the step they are of, in order."""
    sizes = [*range(400), 3 * 4096 + 1, 100_003]
    expected = [[np.full(n, x, np.float32) for x in (1.0, 0.3, 0.0, 0.0)] for n in sizes]
    there = [[torch.from_numpy(x).cuda() for x in arrays] for arrays in expected]
    columns = list(zip(*there))
    streams = [torch.cuda.Stream() for _ in range(2)]
    states = [arrays[2:] for arrays in there]
    batch = cuda.Batch("adam", columns[0], columns[1], states, stream=streams[0])
    given = [
        {**scalars("adam"), "lr": [0.01 / step * (1 + i % 5) for i in range(len(sizes))]}
        for step in range(1, 41)
    ]
    torch.cuda.synchronize()
    for step, own in enumerate(given):
        batch.update(own, stream=streams[step % 2])
    torch.cuda.synchronize()
    for i, arrays in enumerate(expected):
        for own in given:
            single = {**own, "lr": own["lr"][i]}
            _native_testing.update_numpy("adam", arrays[:1], arrays[1:2], [arrays[2:]], single)
        for found, wanted in zip(there[i], arrays):
            assert_same_bits(found.cpu().numpy(), wanted, f"tensor {i}")


@pytest.mark.parametrize("rule", ["adamax", "adam", "sgd_momentum"])
def test_an_array_that_goes_round_the_device_many_times(torch, rule):
    count = 20_000_003
    rng = np.random.RandomState(0)
    states = cuda.kernels().rules[rule][0]
    expected = [np.abs(rng.standard_normal(count)).astype(np.float32) for _ in range(2 + states)]
    there = [torch.from_numpy(x).cuda() for x in expected]
    cuda.update(rule, there[:1], there[1:2], [there[2:]], scalars(rule))
    _native_testing.update_numpy(rule, expected[:1], expected[1:2], [expected[2:]], scalars(rule))
    for found, wanted in zip(there, expected):
        assert_same_bits(found.cpu().numpy(), wanted)


def test_more_than_2_to_the_31_elements(torch):
    """Places beyond 32 bits are updated, and once."""
    count = 2**31 + 12_345
    if torch.cuda.mem_get_info()[0] < 5 * count:
        pytest.skip("the GPU has less free memory than two arrays of 2^31 float16 take")
    weight, grad = (torch.full((count,), x, dtype=torch.float16, device="cuda") for x in (2, 0.25))
    expected = [np.array([x], np.float32) for x in (2, 0.25)]
    for _ in range(2):
        cuda.update("sgd", [weight], [grad], [()], scalars("sgd"))
        _native_testing.update_numpy("sgd", expected[:1], expected[1:], [[]], scalars("sgd"))
        expected[0] = expected[0].astype(np.float16).astype(np.float32)
    wanted = torch.tensor(expected[0][0], dtype=torch.float16, device="cuda")
    for first in range(0, count, 1 << 28):
        assert (weight[first : first + (1 << 28)] == wanted).all(), f"from {first} on"
