"""Separation: mixtures are unmixed without a key, and the images redrawn from what was found."""

from __future__ import annotations

import numpy as np
import torch

from pudica.analysis.attacks.base import CLEAR, SHOWN, Attack, Effort, Metrics, Outcome
from pudica.analysis.attacks.reconstruction import reconstruct_unmixed, train_generator
from pudica.analysis.attacks.unmixing import score_mixtures, score_plain, unmix
from pudica.analysis.drawing import stretch
from pudica.analysis.views.facemix import FacemixView, explain_few, explain_no_maps, mean
from pudica.clients.shields.mixing import padded_count


class Separation(Attack):
    """Unmixes mixtures, knowing which belong together and not, and redraws the images."""

    kind = "separation"
    goal = "attribute"
    further = {"image": "recognised"}
    target = FacemixView

    def _explain_unfit(self, view: FacemixView) -> str:
        if few := explain_few(view, len(view.data.test)):
            return few
        return "nothing is mixed" if view.group == 1 else explain_no_maps(view)

    def run(self, view: FacemixView, effort: Effort) -> Outcome:
        """Unmix some requests, and draw what was found."""
        generator = train_generator(view.without_shield(), effort.epochs, effort.seed)
        metrics: Metrics = {"chance": 0.5}
        pictures: dict[str, np.ndarray] = {}
        for suffix, known in {"": False, "_known_groups": True}.items():
            unmixed = unmix(view, effort.requests, known, effort.seed)
            rebuilt = reconstruct_unmixed(view, generator, unmixed)
            metrics |= {
                f"success{suffix}": unmixed.success,
                f"correlation{suffix}": float(unmixed.correlations.mean()),
                f"recognised{suffix}": unmixed.recognised,
                **{f"{name}{suffix}": value for name, value in rebuilt.similarity().items()},
            }
            if not known:
                shown = unmixed.images[:SHOWN]
                metrics[f"success{CLEAR}"] = mean(score_plain(view, unmixed.images))
                whole = padded_count(SHOWN, view.model.shield.config)
                mixed, _ = view.model.shield.protect(unmixed.true[:whole], np.random.default_rng(0))
                pictures = {
                    "original": rebuilt.true[:SHOWN].numpy(),
                    "true feature maps, mean": _render_maps(unmixed.true),
                    "mixed, mean": _render_maps(mixed),
                }
            places = [int(np.flatnonzero(unmixed.images == image)[0]) for image in shown]
            pictures[f"recovered, groups {'' if known else 'un'}known"] = rebuilt.drawn[
                places
            ].numpy()
        mixtures = score_mixtures(view, effort.requests, effort.seed)
        metrics |= {
            "success_of_the_mixtures": mixtures.success,
            "correlation_of_the_mixtures": float(mixtures.correlations.mean()),
        }
        return Outcome(metrics, pictures)


def _render_maps(maps: torch.Tensor) -> np.ndarray:
    """Render the first feature maps by their mean over channels."""
    return stretch(maps[:SHOWN].mean(1, keepdim=True).numpy(), 1e-9)
