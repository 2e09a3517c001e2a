"""The audit of a shield as an attack on a run: two neighbouring records are told apart."""

from __future__ import annotations

import numpy as np
import torch

from pudica.analysis.attacks.base import CLEAR, Attack, Effort, Metrics, Outcome, balance_successes
from pudica.analysis.audit import Audit, draw_log_ratios, judge
from pudica.analysis.views.shielded import ShieldTarget, draws_noise
from pudica.clients.shields import Mechanism, Shield
from pudica.models.randomness import numpy_generator

SAMPLES = 300
"""Outputs of each neighbour, for each epoch of effort."""
LOUDER, LEAST_EPSILON = 10.0, 10.0
"""The control's ε: so many times that of the settings, and no less."""


class NeighbourAudit(Attack):
    """Tells from one release which of two records, known and far apart, it was made of.

    The most powerful test, that of the likelihood ratio, of one release by the case's shield, with
    :data:`SAMPLES` outputs of each neighbour for each epoch of effort. ``success`` is the balanced
    accuracy. ``epsilon_shown`` is the lower bound on ε at 95 % (:func:`.audit`), of at most
    ``epsilon_ceiling``; ``claimed_epsilon`` is what the shield's paper claims, for a record or for
    one element, read for a record and ``refuted`` (1) or not (0). The control has less noise: that
    of ten times the ε, and of 10 at least. Without noise, an output names its record.
    """

    kind = "audit"
    goal = "record"
    assumes = "two records that it chose"
    target = ShieldTarget

    def _explain_unfit(self, target: ShieldTarget) -> str:
        if isinstance(target.shield, Mechanism) or not draws_noise(target.shield):
            return ""
        return (
            f"shield '{target.shield.config.name}' draws noise, but bounds nothing: its neighbours "
            "are as far apart as one likes"
        )

    def run(self, target: ShieldTarget, effort: Effort) -> Outcome:
        """Audit the shield, and with less noise."""
        shield, samples = target.isolate(), SAMPLES * effort.epochs
        # Of each record one release is attacked; the table has a row for what has releases.
        metrics: Metrics = {"chance": 0.5, "releases": 1, "samples": samples}
        if not isinstance(shield, Mechanism) or shield.is_noiseless:
            return Outcome(metrics | _compare_outputs(shield), {})
        metrics |= attack_mechanism(shield, samples, effort.seed)
        control = attack_mechanism(_reduce_noise(shield), samples, effort.seed)
        shown = ("success", "success_low", "success_high", "epsilon_shown")
        return Outcome(metrics | {f"{name}{CLEAR}": control[name] for name in shown}, {})


def attack_mechanism(mechanism: Mechanism, samples: int, seed: int) -> Metrics:
    """Return how often neighbours are told apart, and what that shows of ε.

    Parameters
    ----------
    samples : int
        Outputs of each neighbour.
    """
    one, other = draw_log_ratios(mechanism, samples, seed)
    labels = np.repeat([1, 0], samples)
    guesses = np.concatenate([one, other]) > 0
    return {**balance_successes(guesses, labels), **_describe(judge(mechanism, one, other))}


def _describe(result: Audit) -> Metrics:
    claimed = result.claimed
    found = {
        "epsilon_shown": result.lower_bound(claimed.delta),
        "epsilon_ceiling": result.ceiling,
        "refuted": float(result.refutes(claimed)),
    }
    if claimed.epsilon is not None:
        found |= {"claimed_epsilon": claimed.epsilon, "claimed_delta": claimed.delta}
    return found


def _reduce_noise(mechanism: Mechanism) -> Mechanism:
    """Return the same mechanism with the noise of a larger ε."""
    settings = mechanism.config.model_dump(exclude={"name"})
    settings["epsilon"] = max(LOUDER * mechanism.config.epsilon, LEAST_EPSILON)
    control = type(mechanism)(**settings).bind(mechanism.shape, mechanism.batch_size)
    return control.train(mechanism.training)


@torch.no_grad()
def _compare_outputs(shield: Shield) -> Metrics:
    """Return the rate where nothing is drawn: outputs differ or they do not, each time."""
    batches = shield.neighbours()
    one, other = (shield.protect(batch, numpy_generator(0, "unused"))[0] for batch in batches)
    rates = {"": 0.5 if torch.equal(one, other) else 1.0, CLEAR: 1.0}
    ends = ("success", "success_low", "success_high")
    found = {f"{name}{suffix}": rate for suffix, rate in rates.items() for name in ends}
    return {**found, "refuted": 0.0}
