# SPDX-License-Identifier: Apache-2.0
"""What comes out does not depend on the version of MXNet: these bits came out under both."""

import hashlib

import numpy as np
import pytest
from family import FAMILY
from support import Run

DIGESTS = {
    "adamax_ext": "bc88efd3f35d933f",
    "adam_ext": "3ac2169bcbb2316d",
    "amsgrad_ext": "ebe544ca45b2d851",
    "adamw_ext wd=0.0": "0d422d6ef32f6b05",
    "nadam_ext": "fa369a5e8a563cf7",
    "adabelief_ext": "2546694fb5287487",
    "rmsprop_ext": "3829aa4513495af8",
    "rmsprop_ext centered=True epsilon=0.001": "8dae663413d9e35b",
    "adagrad_ext": "96ebc1d62742cf3b",
    "adadelta_ext": "fa5e090ddfa31136",
    "sgd_ext": "42329ec5fc4b93e1",
    "sgd_ext momentum=0.9": "530540b11a69a745",
    "nag_ext": "d0ae9caff69873e1",
}


def numbers(rng, shape):
    """Of several magnitudes, and made without functions that round differently elsewhere."""
    return (rng.randint(-(2**20), 2**20, shape) * 2.0 ** -rng.randint(15, 30, shape)).astype("f4")


@pytest.mark.parametrize("member", FAMILY, ids=str)
def test_weights_and_states_after_many_steps(member):
    shapes = [(100,), (7, 5), (1,)]
    rng = np.random.RandomState(0)
    options = {"learning_rate": 0.0123, "wd": 0.013, "clip_gradient": 0.37, "rescale_grad": 1 / 3}
    run = Run(member.create(**{**options, **member.options}), [numbers(rng, s) for s in shapes])
    for _ in range(50):
        run.step([numbers(rng, shape) for shape in shapes])
    digest = hashlib.sha256(b"".join(array.tobytes() for array in run.arrays())).hexdigest()[:16]
    assert digest == DIGESTS[str(member)]
