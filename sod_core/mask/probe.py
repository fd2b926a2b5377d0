"""How much of the classes lies in features at all: nearest mean and linear probe, the yardsticks of a bottleneck."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .session import Images

PENALTY = 1e-4
"""Of the linear probe's squared weights, on features of unit variance."""


def nearest_mean(train: Images, test: Images) -> float:
    """Share of test images whose class's mean of the training images lies nearest."""
    names = train.labels.unique()
    means = torch.stack([train.features[train.labels == name].float().mean(0) for name in names])
    called = names[torch.cdist(test.features.float(), means).argmin(1)]
    return (called == test.labels).double().mean().item()


def linear(train: Images, test: Images, steps: int = 60) -> float:
    """Accuracy of multinomial logistic regression on standardised features, by `steps` of L-BFGS from zeros."""
    weight = fit_linear(train, steps)
    called = (standardised(train.features, test.features) @ weight).argmax(1)
    return (called == test.labels).double().mean().item()


def fit_linear(train: Images, steps: int = 60) -> Tensor:
    """The regression's weights, [M + 1, V]; the last row is the bias."""
    inputs, classes = standardised(train.features, train.features), int(train.labels.max()) + 1
    weight = torch.zeros(inputs.shape[1], classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = functional.cross_entropy(inputs @ weight, train.labels) + PENALTY * weight.square().sum()
        found.backward()
        return found

    optimizer.step(loss)
    return weight.detach()


def standardised(train: Tensor, features: Tensor) -> Tensor:
    """By the training images' mean and deviation, with a column of ones."""
    train, features = train.float(), features.float()
    scaled = (features - train.mean(0)) / train.std(0).clamp(min=1e-6)
    return torch.cat([scaled, torch.ones(len(features), 1)], 1)
