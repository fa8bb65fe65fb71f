# SPDX-License-Identifier: Apache-2.0
"""AutoGluon trains its tabular network on tables that are made here, with the Adam that it names.

Its predictors fill gaps, encode columns, keep the best of the epochs in a file and read it back.
"""

import logging
import re
import tempfile
import warnings
from typing import List

import numpy as np
import pandas as pd
from autogluon.tabular import TabularPredictor
from printing import print_result

ROWS, EPOCHS = 1500, 6
METRICS = {"binary": "log_loss", "multiclass": "log_loss", "regression": "rmse"}
# Of pandas and scikit-learn, about what AutoGluon asks of them.
warnings.simplefilter("ignore", FutureWarning)


class Losses(logging.Handler):
    """Keep the loss and the score of each epoch, which AutoGluon only logs."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: List[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Read a line of the log."""
        found = re.match(r"Epoch \d+\.  Train loss: (\S+), Val \w+: (\S+)", record.getMessage())
        if found:
            self.losses += [float(found[1]), float(found[2])]


def table(kind: str) -> pd.DataFrame:
    """Make a table of numbers, one of them skewed, categories and gaps.

    Parameters
    ----------
    kind
        What is to be predicted: ``binary``, ``multiclass`` or ``regression``.

    Returns
    -------
    pandas.DataFrame
        The table; the column ``label`` follows from the others, and from chance.
    """
    rng = np.random.RandomState(0)
    numbers = rng.standard_normal((ROWS, 3))
    levels = rng.randint(0, [2, 9, 40], (ROWS, 3))
    signal = numbers[:, 0] + 0.1 * levels[:, 1] + 0.5 * np.sin(levels[:, 2])
    signal += 0.3 * rng.standard_normal(ROWS)
    labels = {
        "binary": signal > 0.4,
        "multiclass": np.digitize(signal, [0, 0.8]),
        "regression": signal,
    }
    numbers[rng.uniform(size=ROWS) < 0.1, 1] = np.nan
    columns = {"age": numbers[:, 0], "hours": numbers[:, 1], "gain": np.exp(3 * numbers[:, 2])}
    for name, found in zip(("sex", "work", "country"), levels.T):
        columns[name] = pd.Categorical([f"{name}{level}" for level in found])
    return pd.DataFrame({**columns, "label": labels[kind]})


for kind, options in (
    ("binary", {}),
    ("multiclass", {"lr_scheduler": "cosine", "target_lr": 0.01, "warmup_epochs": 2}),
    ("regression", {"network_type": "feedforward", "weight_decay": 0.01}),
    ("binary", {"optimizer": "sgd", "learning_rate": 0.01}),
):
    data = table(kind)
    seen = Losses()
    model_logger = logging.getLogger("autogluon.tabular.models.tabular_nn.tabular_nn_model")
    model_logger.addHandler(seen)
    with tempfile.TemporaryDirectory() as folder:
        predictor = TabularPredictor("label", kind, METRICS[kind], folder, verbosity=4)
        network = {"num_epochs": EPOCHS, "batch_size": 64, "seed_value": 0, **options}
        predictor.fit(data, hyperparameters={"NN": network})
        model = predictor._trainer.load_model("NeuralNetMXNet")
        answers = predictor.predict(data.drop(columns="label"))
    model_logger.removeHandler(seen)
    assert len(seen.losses) == 2 * EPOCHS, seen.losses
    name = f"{kind}, {options.get('optimizer', 'adam')}"
    print_result(name, [*seen.losses, answers.astype(float).mean()], model.model.collect_params())
