# SPDX-License-Identifier: Apache-2.0
"""Read a Module of MXNet 1 as if it were a Trainer."""

from types import SimpleNamespace
from typing import Any, List

from mxnet.optimizer import Optimizer

from .trainer import Keys


class KeysOfModule(Keys):
    """The keys by which the updater of a Module knows its parameters, of which there is one kind.

    Parameters
    ----------
    keys : list
        Names with updates on a key-value store. Else a number for each parameter on each device.
    """

    def __init__(self, keys: List[Any]):
        self.on_devices = self.on_store = keys

    @property
    def in_use(self) -> List[Any]:
        """Return the keys of all parameters, in their order."""
        return self.on_devices


class ModuleTrainer:
    """What checkpoints read of a Trainer, from a Module or BucketingModule.

    Parameters
    ----------
    module : mxnet.mod.Module or mxnet.mod.BucketingModule
        With its optimizer.

    Raises
    ------
    ValueError
        If it has no optimizer yet, or is of another kind.
    """

    _kv_initialized = True
    _params_to_init = ()

    def __init__(self, module: Any):
        if not module.optimizer_initialized:
            raise ValueError("the module has no optimizer yet: call its init_optimizer first")
        buckets = getattr(module, "_buckets", None)
        if buckets is not None:
            module = buckets[module._default_bucket_key]
        group = getattr(module, "_exec_group", None)
        if group is None:
            raise ValueError(
                f"a {type(module).__name__} keeps no states: give the Module or BucketingModule "
                "that does"
            )
        self._kvstore = module._kvstore
        self._update_on_kvstore = bool(module._update_on_kvstore)
        self._updaters = [module._updater]
        self.optimizer: Optimizer = module._optimizer
        owner = getattr(self._kvstore, "_updater", None) if self._update_on_kvstore else None
        owner = owner or module._updater
        if owner is not None:
            # Module.load_optimizer_states can have replaced it.
            self.optimizer = owner.optimizer

        self._params: List[Any] = []
        keys: List[Any] = []
        arrays = zip(group.param_names, group.param_arrays, group.grad_arrays)
        for number, (name, weights, grads) in enumerate(arrays):
            grad_req = "null" if grads[0] is None else "write"
            places = [weights] if self._update_on_kvstore else [[weight] for weight in weights]
            for device, place in enumerate(places):
                keys.append(name if self._update_on_kvstore else number * len(weights) + device)
                parameter = SimpleNamespace(name=name, grad_req=grad_req, _data=place)
                self._params.append(parameter)
        self.keys = KeysOfModule(keys)


def as_trainer(owner: Any) -> Any:
    """Return a trainer as it is, and a module as one."""
    return ModuleTrainer(owner) if hasattr(owner, "optimizer_initialized") else owner
