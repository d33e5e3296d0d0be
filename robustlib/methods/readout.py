"""The readout of frozen features: multinomial logistic regression, fitted once and not trained step by step."""

import warnings
from typing import Any

import torch
from torch import Tensor

from robustlib.attacks.float32 import full_float32
from robustlib.attacks.search import borrowed
from robustlib.data import Split
from robustlib.models import Classifier, SelfSupervised

BATCH = 500


def fit_readout(model: SelfSupervised, split: Split, c: float = 1.0, iterations: int = 1000) -> None:
    """Gives the model the readout that fits its features of the plain images of `split`; the encoder stays as it is.

    Features are those of the deployed model: eval mode, float32, images neither augmented nor normalised anew.
    """
    features = features_of(model, split)
    weight, bias = logistic_regression(features, split.labels, c, iterations)
    model.set_readout(weight, bias)


def features_of(model: Classifier, split: Split) -> Tensor:
    """Features (N, D) of the plain images of `split`, in eval mode and float32, on the model's device."""
    device = next(model.parameters()).device
    with borrowed(model), torch.no_grad(), full_float32():
        return torch.cat([model.features(batch.x.to(device)) for batch in split.batches(BATCH)])


def logistic_regression(
    features: Tensor, labels: Tensor, c: float = 1.0, iterations: int = 1000
) -> tuple[Tensor, Tensor]:
    """The weight (K, D) and bias (K,) that minimise c sum_n CE(W f_n + b, y_n) + |W|^2 / 2, by scikit-learn (lbfgs), in float64.

    Two classes have one direction w there: they get -w/2 and w/2, which predict the same.

    Args:
        features: (N, D).
        labels: int64 (N,), every class 0 .. K - 1 among them.
        c: inverse strength of the L2 penalty, > 0.
        iterations: of lbfgs at most; where they do not do, a RuntimeWarning says so.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    fitted: Any = LogisticRegression(C=c, solver="lbfgs", max_iter=iterations)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it names parameters of scikit-learn
        fitted.fit(features.cpu().double().numpy(), labels.cpu().numpy())
    if fitted.n_iter_.max() >= iterations:
        said = f"The readout's logistic regression has not converged after {iterations} iterations: raise readout_iterations."
        warnings.warn(said, RuntimeWarning, stacklevel=2)
    weight, bias = (torch.from_numpy(part).to(features) for part in (fitted.coef_, fitted.intercept_))
    return (torch.cat((-weight, weight)) / 2, torch.cat((-bias, bias)) / 2) if len(bias) == 1 else (weight, bias)
