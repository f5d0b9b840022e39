"""An image classifier and its twin in Flax NNX: `python -m parity.certify scripts/pairs/classifier.py`

PyTorch has channels first, and flattens them first; the twin has them last. `nnx.BatchNorm` averages the biased
variance, so the twin takes jaxseg's.
"""

import jax
import numpy as np
import torch
from flax import nnx

from jaxseg.nn.layers import BatchNorm


class Classifier(torch.nn.Module):
    def __init__(self, classes: int = 5):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.depthwise = torch.nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.pointwise = torch.nn.Conv2d(8, 8, 1)
        self.dropout = torch.nn.Dropout(0.2)
        self.head = torch.nn.Linear(8 * 4 * 4, classes)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.pointwise(self.depthwise(x)))
        return self.head(self.dropout(x.flatten(1)))


class Twin(nnx.Module):
    def __init__(self, classes: int = 5, *, norm=BatchNorm, padding=1, rngs: nnx.Rngs):
        self.stem = nnx.Conv(3, 8, (3, 3), padding=1, rngs=rngs)
        self.norm = norm(8)
        self.depthwise = nnx.Conv(8, 8, (3, 3), 2, padding=padding, feature_group_count=8, rngs=rngs)
        self.pointwise = nnx.Linear(8, 8, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(4 * 4 * 8, classes, rngs=rngs)

    def __call__(self, x):
        x = jax.nn.relu(self.norm(self.stem(x)))
        x = jax.nn.relu(self.pointwise(self.depthwise(x)))
        return self.head(self.dropout(x.transpose(0, 3, 1, 2).reshape(len(x), -1)))


rng = np.random.default_rng(0)
torch.manual_seed(0)
torch_model = Classifier()
twin = Twin(rngs=nnx.Rngs(0))
batch = rng.normal(size=(6, 3, 8, 8)), rng.integers(0, 5, 6)
loss = "cross_entropy"
optimizer = "momentum", 0.05
steps = 20
