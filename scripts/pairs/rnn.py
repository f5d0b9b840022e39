"""A character model with an LSTM and its twin as a plain function: `python -m parity.certify scripts/pairs/rnn.py`

PyTorch's LSTM has two biases. Flax's cells have one: the same function, but their sum learns half as fast.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from parity.certificate.recorder import named

TOKENS, WIDTH, HIDDEN = 11, 6, 8


class Model(torch.nn.Module):
    def __init__(self, cell=torch.nn.LSTM):
        super().__init__()
        self.embed = torch.nn.Embedding(TOKENS, WIDTH)
        self.rnn = cell(WIDTH, HIDDEN, batch_first=True)
        self.head = torch.nn.Linear(HIDDEN, TOKENS)

    def forward(self, tokens):
        return self.head(self.rnn(self.embed(tokens))[0][:, -1])


def function(params, tokens):
    x = named("embed", params["embed"]["embedding"][tokens])
    rnn, zeros = params["rnn"], jnp.zeros((len(tokens), HIDDEN), x.dtype)

    def cell(carry, x):
        h, c = carry
        gates = x @ rnn["w_ih"] + h @ rnn["w_hh"] + (rnn["b_ih"] + rnn["b_hh"])[None]
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    _, y = jax.lax.scan(cell, (zeros, zeros), x.swapaxes(0, 1))
    y = named("rnn", y.swapaxes(0, 1))
    return named("head", y[:, -1] @ params["head"]["kernel"] + params["head"]["bias"][None])


params = {
    "embed": {"embedding": np.zeros((TOKENS, WIDTH), np.float32)},
    "rnn": {
        "w_ih": np.zeros((WIDTH, 4 * HIDDEN), np.float32),
        "w_hh": np.zeros((HIDDEN, 4 * HIDDEN), np.float32),
        "b_ih": np.zeros(4 * HIDDEN, np.float32),
        "b_hh": np.zeros(4 * HIDDEN, np.float32),
    },
    "head": {"kernel": np.zeros((HIDDEN, TOKENS), np.float32), "bias": np.zeros(TOKENS, np.float32)},
}
rng = np.random.default_rng(0)
torch.manual_seed(0)
torch_model = Model()
twin = function, params
batch = rng.integers(0, TOKENS, (5, 7)), rng.integers(0, TOKENS, 5)
loss = "cross_entropy"
optimizer = "adam", 1e-2
steps = 20
