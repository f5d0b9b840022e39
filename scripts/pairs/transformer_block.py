"""A transformer block and its twin in Flax Linen: `python -m parity.certify scripts/pairs/transformer_block.py`

PyTorch keeps query, key and value in one matrix, Linen in three with an axis of heads. Linen's LayerNorm has eps 1e-6
and its GELU is an approximation, unless told otherwise.
"""

import flax.linen as nn
import jax
import numpy as np
import optax
import torch

WIDTH, HEADS = 16, 4

torch_options = {"activation": "gelu", "batch_first": True, "norm_first": True, "dropout": 0.1}


class Block(nn.Module):
    epsilon: float = 1e-5
    approximate: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        y = nn.LayerNorm(self.epsilon, name="norm1")(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS, name="attention")(y, y)
        y = nn.LayerNorm(self.epsilon, name="norm2")(x)
        y = nn.gelu(nn.Dense(4 * WIDTH, name="up")(y), approximate=self.approximate)
        return x + nn.Dropout(0.1, deterministic=not train)(nn.Dense(WIDTH, name="down")(y))


def twin_of(**options):
    block = Block(**options)
    return block, block.init(jax.random.key(0), np.zeros((1, 2, WIDTH), np.float32))


rng = np.random.default_rng(0)
torch.manual_seed(0)
torch_model = torch.nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, **torch_options)
for parameter in torch_model.parameters():  # biases and scales that are all 0 or 1 would hide mistakes
    torch.nn.init.normal_(parameter, parameter.mean().item(), 0.2)
twin = twin_of()
batch = rng.normal(size=(4, 6, WIDTH)), rng.normal(size=(4, 6, WIDTH))
loss = "mse"
optimizer = lambda params: torch.optim.AdamW(params, 1e-3), optax.adamw(1e-3, weight_decay=0.01)
steps = 20
