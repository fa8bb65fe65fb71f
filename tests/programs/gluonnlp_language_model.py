# SPDX-License-Identifier: Apache-2.0
"""A word language model and a tiny BERT of GluonNLP, with the optimizers that its scripts name."""

import gluonnlp as nlp
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon
from printing import print_result

WORDS, BATCH, LENGTH = 200, 8, 12

for name, options in (
    ("sgd", {"learning_rate": 1.0}),
    ("adam", {"learning_rate": 0.01, "wd": 1e-4}),
    ("bertadam", {"learning_rate": 1e-3, "wd": 0.01}),
):
    mx.random.seed(0)
    rng = np.random.RandomState(0)
    model = nlp.model.language_model.StandardRNN(
        "lstm", WORDS, 32, 32, 2, dropout=0.0, tie_weights=True
    )
    model.initialize(mx.init.Xavier())
    trainer = gluon.Trainer(model.collect_params(), name, options)
    loss_of = gluon.loss.SoftmaxCrossEntropyLoss()
    hidden, losses = model.begin_state(func=mx.nd.zeros, batch_size=BATCH), []
    for _ in range(8):
        words = mx.nd.array(rng.randint(0, WORDS, (LENGTH + 1, BATCH)))
        with autograd.record():
            output, hidden = model(words[:-1], hidden)
            loss = loss_of(output.reshape((-3, -1)), words[1:].reshape((-1,))).mean()
        loss.backward()
        hidden = [state.detach() for state in hidden]
        gradients = [p.grad() for p in model.collect_params().values() if p.grad_req != "null"]
        gluon.utils.clip_global_norm(gradients, 0.2)
        trainer.step(1)
        losses.append(loss.asscalar())
    print_result(f"language model, {name}", losses, model.collect_params())

for name in ("bertadam", "lamb", "adam"):
    mx.random.seed(0)
    rng = np.random.RandomState(0)
    encoder = nlp.model.bert.BERTEncoder(
        units=16, hidden_size=32, num_layers=2, num_heads=2, max_length=LENGTH, dropout=0.0
    )
    bert = nlp.model.bert.BERTModel(
        encoder,
        vocab_size=WORDS,
        token_type_vocab_size=2,
        units=16,
        embed_size=16,
        use_decoder=False,
        use_classifier=False,
    )
    classifier = nlp.model.BERTClassifier(bert, 2, dropout=0.0)
    classifier.initialize(mx.init.Normal(0.02))
    parameters = classifier.collect_params()
    for parameter in classifier.collect_params(".*beta|.*gamma|.*bias").values():
        parameter.wd_mult = 0.0
    trainer = gluon.Trainer(parameters, name, {"learning_rate": 1e-3, "wd": 0.01})
    loss_of, losses = gluon.loss.SoftmaxCELoss(), []
    for _ in range(8):
        words = mx.nd.array(rng.randint(0, WORDS, (BATCH, LENGTH)))
        types, lengths = mx.nd.zeros((BATCH, LENGTH)), mx.nd.full((BATCH,), LENGTH)
        labels = mx.nd.array(rng.randint(0, 2, BATCH))
        with autograd.record():
            loss = loss_of(classifier(words, types, lengths), labels).mean()
        loss.backward()
        trainer.allreduce_grads()
        nlp.utils.clip_grad_global_norm(
            [p for p in parameters.values() if p.grad_req != "null"], 1.0
        )
        trainer.update(1, ignore_stale_grad=True)
        losses.append(loss.asscalar())
    print_result(f"BERT, {name}", losses, parameters)
