"""Baselines of covariates to start the descent from: cell types differ by many e-folds, and gradient descent has far to go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scgim.fit._statistics import to_device
from scgim.nn._likelihood import score_and_information

if TYPE_CHECKING:
    from scgim.module import GIMModule
    from scgim.train import BatchLoader

_N_STEPS = 8  # of Newton's method: each bridges two e-folds at most, and the last ones hardly move
_MAX_STEP = 2.0  # e-folds, where a likelihood of few counts is far from its parabola
_MIN_INFORMATION = 1e-6  # guard of a solution: of a column that is the same in all control cells


@torch.no_grad()
def settle_covariates(module: GIMModule, loader: BatchLoader) -> None:
    """Set intercepts and effects of covariates to their likeliest values in the control cells, mechanisms as they are."""
    n = module.covariate_effect.shape[0]
    if not n:
        return
    prior = torch.ones(n + 1, dtype=torch.float64)  # of both: variances of one, around the mean of all and zero
    for _ in range(_N_STEPS):
        value = torch.cat([module.covariate_effect, (module.intercept - module.intercept_loc)[None]]).double().cpu()
        gradient, information = -(prior[:, None] * value).T, torch.diag(prior).repeat(value.shape[1], 1, 1)
        for raw in loader:
            batch = to_device(raw, module.device)
            control = ~module.treated[batch["context"]]
            batch = {name: part[control] for name, part in batch.items()}
            whole, _ = module.predictors(**batch)
            x = module.standardised(batch["x"])
            score, weight = score_and_information(module.likelihood, x, whole, batch["log_size"], module.log_scale)
            design = torch.nn.functional.pad(batch["covariates"], (0, 1), value=1.0)
            gradient += (score.T @ design).double().cpu()
            information += torch.einsum("bj,bq,br->jqr", weight, design, design).double().cpu()
        eye = _MIN_INFORMATION * torch.eye(n + 1, dtype=torch.float64)
        step = torch.linalg.solve(information + eye, gradient[..., None])[..., 0].T
        step = step * (_MAX_STEP / step.abs().amax(0).clamp_min(_MAX_STEP))
        module.covariate_effect += step[:-1].to(module.covariate_effect)
        module.intercept += step[-1].to(module.intercept)
