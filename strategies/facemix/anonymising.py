"""A comparator of paper 003: an anonymiser on the edge, trained against an adversary.

After Ren, Lee and Ryoo 2018: the anonymiser changes images little, so that the classifier still
sees their attributes, and an adversary who learns all the time no longer sees whose they are. Who
that is ``data.label`` says.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy, l1_loss, log_softmax

from pudica import models
from pudica.models import optimizers
from pudica.models.attributes import attribute_loss
from pudica.models.packing import select_prefix
from pudica.models.randomness import derive
from pudica.strategies.facemix.session import Session
from pudica.strategies.facemix.training import TRAINING, Central


class Anonymising(Central):
    """Training of anonymiser and classifier, and of the adversary beside them."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        settings, data = session.settings.anonymiser, session.data
        assert settings is not None
        self.settings = settings
        channels, side, _ = data.shape
        adversary = models.build(
            session.settings.model,
            num_classes=data.num_classes,
            channels=channels,
            image_size=side,
            seed=derive(session.experiment.seed, "adversary"),
        )
        self.adversary = session.compute.move_model(adversary).train()
        built = optimizers.build(self.training.optimizer, self.adversary.parameters())
        assert built is not None
        self.adversarys = built
        self.right = 0

    def run_epoch(self, epoch: int) -> float:
        """Train on all images once, and log how often the adversary was right."""
        optimizers.set_learning_rate(self.adversarys, self.training.rate(epoch))
        self.right = 0
        loss = super().run_epoch(epoch)
        share = self.right / len(self.session.data.train)
        self.session.log(TRAINING, "adversary_accuracy", share, round=epoch + 1)
        return loss

    def loss(self, x: torch.Tensor, attributes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return what the attributes are missed by, and what is given away and changed.

        The adversary makes a step first. What is to be least is the cross entropy of its guesses
        to a uniform guess, which is bounded, in place of its success.
        """
        compute, settings = self.session.compute, self.settings
        redrawn = compute.forward(self.model.pre, x)
        self.adversarys.zero_grad()
        guesses = compute.forward(self.adversary, redrawn.detach())
        self.right += int((guesses.argmax(1) == labels).sum())
        cross_entropy(guesses, labels).backward()  # type: ignore[no-untyped-call]
        self.adversarys.step()
        logits = compute.forward(self.model.main, redrawn)
        given_away = -log_softmax(compute.forward(self.adversary, redrawn), 1).mean()
        return (
            attribute_loss(logits, attributes, self._weights)
            + settings.weight * given_away
            + settings.likeness * l1_loss(redrawn, x)
        )

    def _tensors(self, optimizer: bool) -> dict[str, torch.Tensor]:
        kept = super()._tensors(optimizer)
        if optimizer:
            beside = {f"adversary/{k}": v for k, v in self.adversary.state_dict().items()}
            state = optimizers.optimizer_state(self.adversarys)
            beside |= {f"adversarys/{key}": value for key, value in state.items()}
            kept |= {f"{self.task}/{key}": value for key, value in beside.items()}
        return kept

    def _restore(self) -> int:
        done = super()._restore()
        if done:
            arrays = self.recorder.arrays
            self.adversary.load_state_dict(select_prefix(f"{self.task}/adversary/", arrays))
            optimizers.load_optimizer_state(
                self.adversarys, select_prefix(f"{self.task}/adversarys/", arrays)
            )
        return done
