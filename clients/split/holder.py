"""A node that holds the front of a model: the shield behind it, what travels, and restarts."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from pudica.clients import protocol
from pudica.clients.assignments import Fronts, Wire
from pudica.clients.data import ImageSet, Part
from pudica.clients.data.examples import Examples
from pudica.clients.runtime.role import Role
from pudica.clients.runtime.snapshots import Snapshots
from pudica.clients.shields.front import Front
from pudica.clients.shields.integers import IntegerMechanism
from pudica.clients.split.releases import OpenReleases
from pudica.models import optimizers, packing
from pudica.models.compute import Compute
from pudica.models.randomness import (
    Randomness,
    SecretGenerator,
    SystemGenerator,
    has_random_layers,
    numpy_generator,
)

KEY = "noise.key"
Images = ImageSet | Examples


@dataclass(frozen=True)
class Terms:
    """On what an edge and its cloud agreed; what the vault keeps is kept by case.

    From seed and place the order of batches, dropout and seeded noise are drawn.
    """

    case: str
    fronts: Fronts
    batch_size: int
    wire: Wire
    noise: str
    seed: int
    place: int | str
    optimizer: optimizers.Optimizing


class Output(NamedTuple):
    """What the front's gradient on a batch comes from, with the graph.

    Attributes
    ----------
    protected : Tensor of shape (B, …)
        Activations as they are sent.
    penalty : Tensor of shape () or None
        What the shield adds to the loss, if anything.
    """

    protected: torch.Tensor
    penalty: torch.Tensor | None = None


@dataclass
class Sent:
    """The batches of an epoch that were sent last, until their gradient comes back.

    Attributes
    ----------
    turn : int
        Of the exchange; a gradient says of which turn it is.
    outputs : list of Output
        What was sent of each batch; empty after a restart.
    """

    turn: int
    epoch: int
    step: int
    count: int
    outputs: list[Output] = field(default_factory=list)

    @property
    def steps(self) -> range:
        """The batches' numbers."""
        return range(self.step, self.step + self.count)


class FrontHolder(Role):
    """What the answers of an :class:`.Edge` share; subclasses say where the parts come from.

    Attributes
    ----------
    shared : Module
        What of the front travels, where anything does.
    turn : int
        The last one it answered.
    """

    front: Front
    shared: nn.Module
    train: Images
    terms: Terms
    releases: OpenReleases
    snapshots: Snapshots
    compute: Compute

    def _take_up(self, front: Front, shared: nn.Module, terms: Terms, fingerprint: str) -> None:
        """Begin with a front, on some terms."""
        self.terms, self.fingerprint = terms, fingerprint
        front.requires_grad_(terms.fronts != "frozen")
        self.front, self.shared = front, shared
        self._set_training_mode()
        self.compute.move_model(front)
        self.optimizer = optimizers.build(terms.optimizer, front.parameters())
        self.snapshots = Snapshots(self.vault, terms.case, fingerprint)
        self.turn = -1
        self.pending: Sent | None = None
        self._ready = False
        self._has_random_layers = has_random_layers(front)
        self._orders: dict[int, np.ndarray] = {}
        self._seen: dict[int, torch.Tensor] = {}
        self._ends = np.cumsum(protocol.batch_sizes(len(self.train), terms.batch_size))

    @property
    @abstractmethod
    def label(self) -> str:
        """How messages name this device and where its model is cut."""

    @abstractmethod
    def images(self, part: Part) -> Images:
        """Return this device's own images of one part."""

    def _set_training_mode(self) -> None:
        """Put the front into the mode in which it releases training examples.

        A frozen one's layers do not move; its shield normalises by the batch all the same.
        """
        self.front.layers.train(self.terms.fronts != "frozen")
        self.front.shield.train()

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        self.front.eval()
        try:
            yield
        finally:
            self._set_training_mode()

    # --------------------------------------------------------------------- the front

    def adopt(self, arrays: Mapping[str, torch.Tensor]) -> None:
        """Take over a front that the cloud sends, and the state of its optimiser.

        Parameters
        ----------
        arrays : mapping of str to Tensor
            ``front``, of shape (n,) as packed; ``optimizer/…``.

        Raises
        ------
        RuntimeError
            The device has one that the cloud is not to change.
        """
        given, layers = arrays["front"], packing.state_tensors(self.front.layers)
        expected = sum(tensor.numel() for tensor in packing.state_tensors(self.shared))
        if given.numel() != expected:
            raise RuntimeError(
                f"the strategy's front has {given.numel()} values, this device's {expected}; give "
                "both the same module"
            )
        # Layers come first; what the shield remembers may have moved.
        own = given.numpy()[: sum(layer.numel() for layer in layers)]
        if self._ready and self.terms.fronts in ("private", "frozen"):
            if not np.array_equal(packing.pack(layers), own):
                self._refuse_front()
            return
        self._check_front(own)
        packing.unpack(given.to(self.compute.device), packing.state_tensors(self.shared))
        optimizers.load_optimizer_state(self.optimizer, packing.select_prefix("optimizer/", arrays))
        if self.releases.guaranteed:
            self._check_rows_apart()
        self.pending, self._ready = None, True

    def _check_front(self, layers: np.ndarray) -> None:
        """Take no other front in a case of a frozen one, whoever joins it again."""
        name = f"{self.terms.case}-front"
        if self.terms.fronts == "frozen" and not self.vault.pin(name, hash_layers(layers)):
            self._refuse_front()

    def _refuse_front(self) -> None:
        raise RuntimeError(f"the front is {self.terms.fronts}, and stays as it is")

    def _check_rows_apart(self) -> None:
        """See that an image's activation does not depend on the rest of its batch.

        A guarantee for a record rests on it.
        """
        shield = self.front.shield
        assert isinstance(shield, IntegerMechanism)

        def steps(x: torch.Tensor) -> torch.Tensor:
            return shield.round_to_grid(shield.validate_input(self._activate(x)))

        image = tuple(self.train.batch(np.arange(1))[0].shape[1:])
        with self._evaluating():
            one, other = compare_in_batches(steps, image)
        if (one - other).abs().max() > 1:
            raise RuntimeError(
                "the front computes an image's activation from the whole batch, so nothing can be "
                "promised to one image"
            )

    def _activate(self, x: torch.Tensor) -> torch.Tensor:
        return self.compute.forward(self.front, self.compute.move_batch(x))

    def require_fronts(self, mode: str) -> None:
        """Raise RuntimeError unless the fronts are kept in this way."""
        if self.terms.fronts != mode:
            raise RuntimeError(f"the front is {self.terms.fronts}, and stays on this device")

    def _require_front(self) -> None:
        if not self._ready:
            raise RuntimeError(
                "this device has no front: it was given none, or its vault was emptied"
            )

    # -------------------------------------------------------------------- the shield

    def _protect(
        self, activations: torch.Tensor, identity: bytes, *purpose: str | int
    ) -> torch.Tensor:
        randomness = self._randomness(activations, identity, *purpose)
        try:
            protected, _ = self.front.shield.protect(activations, randomness)
        except ValueError as error:
            raise ValueError(f"{self.label}: {error}") from error
        return protected

    def _randomness(
        self, activations: torch.Tensor, identity: bytes, *purpose: str | int
    ) -> Randomness:
        """Return what the noise of one batch is drawn from.

        Where what has left is kept, secret noise is new each time. Elsewhere it depends on the
        front, the activations themselves, and what the fingerprint holds, which is the shield,
        too: asked for the same again the device says the same, and neither other activations nor
        another shield ever get the same noise.
        """
        terms = self.terms
        if terms.noise == "seeded":
            return numpy_generator(terms.seed, "noise", terms.place, *purpose)
        if self.releases.keeps:
            return SystemGenerator()
        what = "/".join(map(str, (self.fingerprint, *purpose))).encode()
        secret = self.vault.secret(KEY)
        return SecretGenerator(secret, identity + hash_tensors([activations]) + what)

    def _noise_identity(self) -> bytes:
        """Return the front's identity where noise depends on it, else nothing."""
        is_needed = self.terms.noise == "secret" and not self.releases.keeps
        return self._identity() if is_needed else b""

    def _identity(self) -> bytes:
        """Return what tells this front from all others, at this moment: weights and statistics."""
        return hash_tensors(packing.state_tensors(self.front))

    def _encode(self, output: torch.Tensor) -> np.ndarray:
        """Return protected activations as they travel."""
        return protocol.on_wire(output, self.terms.wire, self.front.shield.grid)

    # ------------------------------------------------------------------------ restarts

    def keep(self, turn: int, needed: int) -> None:
        """Put all that the next turn depends on into the vault; as of :meth:`.Snapshots.keep`."""
        self._require_front()
        state = optimizers.optimizer_state(self.optimizer)
        tensors = {f"front/{k}": v for k, v in self.front.state_dict().items()}
        tensors |= {f"optimizer/{k}": v for k, v in state.items()}
        names = ("turn", "epoch", "step", "count")
        pending = self.pending and {name: getattr(self.pending, name) for name in names}
        self.snapshots.keep(turn, needed, tensors, {"pending": pending})
        self.turn = turn

    def begin(self, turn: int = -1, of: int | None = None) -> None:
        """Be up to date, and as before a turn that is asked for again.

        A device whose process was lost after it had kept a turn, and before its answer had
        arrived, is asked for that turn again: with the front as it was, it says the same.

        Parameters
        ----------
        turn : int
            The turn that is asked for, -1 if none is.
        of : int, optional
            Of which turn the gradient is that comes along, if one does.
        """
        was_kept = turn > self.turn and turn == self.snapshots.newest()
        # Fronts are flushed more than once in the same turn; the gradient comes the first time.
        if was_kept and self._pending_before(turn) == of:
            self.snapshots.drop_after(turn - 1)
        self.catch_up()

    def _pending_before(self, turn: int) -> int | None:
        """Return of which turn a gradient was awaited before a turn was kept, if of any."""
        kept = self.snapshots.load(self.snapshots.newest(before=turn))
        return kept[1]["pending"]["turn"] if kept and kept[1]["pending"] else None

    def catch_up(self) -> None:
        """Go on where another process left off, if one has answered for this device since."""
        newest = self.snapshots.newest()
        if newest <= self.turn or (kept := self.snapshots.load(newest)) is None:
            return
        tensors, note = kept
        self.front.load_state_dict(packing.select_prefix("front/", tensors))
        state = packing.select_prefix("optimizer/", tensors)
        optimizers.load_optimizer_state(self.optimizer, state)
        self.pending = Sent(**note["pending"]) if note["pending"] else None
        self.turn, self._ready = newest, True

    def roll_back(self, turn: int) -> None:
        """Go back to the newest snapshot that is not newer than a turn: a run is resumed."""
        self.snapshots.drop_after(turn)
        self.catch_up()


@torch.no_grad()
def compare_in_batches(
    compute: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what is computed of one example of a shape in two batches that differ otherwise.

    The examples are drawn, and nobody's.
    """
    drawn = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    others = torch.cat([drawn[:1], 1 - drawn[1:]])
    one, other = (compute(batch)[0] for batch in (drawn, others))
    return one, other


def hash_layers(packed: np.ndarray) -> str:
    """Return the digest of a front's layers, packed, by which ``node.yaml`` names a front."""
    return hashlib.blake2b(packed.tobytes(), digest_size=16).hexdigest()


def hash_tensors(tensors: Sequence[torch.Tensor]) -> bytes:
    """Return a digest of tensors' values."""
    return hashlib.blake2b(packing.pack(tensors).tobytes(), digest_size=16).digest()
