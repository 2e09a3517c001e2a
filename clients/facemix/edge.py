"""An edge of FaceMix: private images, the first and the last layers, keys that live for a request.

What leaves it is mixed (see :mod:`pudica.clients.shields.mixing`); predictions stay in its vault.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from logging import WARN
from typing import Any, get_args

import numpy as np
import torch
from flwr.app import RecordDict
from flwr.common.logger import log
from torch import nn

from pudica.clients import protocol
from pudica.clients.data import Part
from pudica.clients.data.errors import DataError
from pudica.clients.facemix.images import AttributeImages, Images, name_attributes
from pudica.clients.facemix.stages import EdgeStages, Keys
from pudica.clients.facemix.terms import shield_settings, stage_shape
from pudica.clients.facemix.training import EdgeTraining
from pudica.clients.runtime.role import Arrays, Config
from pudica.clients.runtime.vault import MemoryVault
from pudica.clients.shields import Shape, Shield, ShieldConfig
from pudica.clients.shields.decoys import count_missing, make_decoys
from pudica.clients.shields.draws import draw_permutations
from pudica.clients.shields.mixing import group_size
from pudica.models import packing
from pudica.models.attributes import LOGITS, count_confusions, predict_answers
from pudica.models.compute import Compute, ComputeConfig
from pudica.models.errors import RequestError
from pudica.models.naming import validate_node_name
from pudica.models.randomness import Randomness

DECOYS_OF = 32
"""Decoys are made of so many other images."""
AT_ONCE = 256
"""Images that pass the first stage together."""


@dataclass
class PendingRequest:
    """One request that waits for its answer."""

    rows: np.ndarray
    """Positions of the images that it asks about."""
    places: np.ndarray
    """Their places among what is protected, decoys between them."""
    secret: Any = field(repr=False)
    """What the shield needs to restore the answer."""
    sent: torch.Tensor


class InferenceEdge(EdgeStages):
    """One edge's side of every exchange of FaceMix (paper 003); answers a :class:`.FaceMix`.

    The edge computes the first and the last stage of a model, ``post(main(pre(x)))`` of Eq. (2),
    and the cloud the middle one, on features that are mixed in groups by random orthogonal
    matrices and shuffled (§3.4, §3.5). Images, keys and predictions stay here.

    Parameters
    ----------
    pre, post : Module
        The first and the last stage. Their weights come from the cloud; the modules given are not
        changed.
    images : Dataset
        Map-style, of images, float tensors (C, H, W), or of pairs of an image and its label: a
        class, or a vector (A,) of answers to A questions. Labels stay here: of those that there are
        the edge counts how often it was right.
    mixing : Mixing or mapping, optional
        What hides features; by default mixing in groups of eight.
    train : Dataset, optional
        Pairs of an image and its label, for split training; without, it takes no part in it.
    attributes : list of str, optional
        What the questions are called; all edges and the cloud have the same in the same order.
    name : str, optional
        By default the node's partition.
    keys : {"secret", "seeded"}
        ``secret``: each request's key is drawn from the system's randomness, and images cross once
        under the same stages, whatever run asks for them. ``seeded``: keys are drawn from
        ``seed``, for experiments that are to be repeated.
    report : bool
        Whether it tells how often it was right, by attribute and answer.
    on_predictions : callable, optional
        ``on_predictions(rows, predictions)`` is called here as soon as a request is answered, with
        the images' positions, int64 (n,), and answers, int64 (n,), or (n, A) of several questions.
    seed : int
        Of the order of training batches, augmentation, layers that draw, and seeded keys.
    compute : ComputeConfig, optional
        Device, threads and precision.

    Raises
    ------
    DataError
        A data set that is empty, or yields something else.
    RequestError
        A stage that does not take the images, or a setting that is not allowed; by name.
    """

    returned: Shape | None = None
    """Shape of the cloud's output for one example, where the edge knows the cloud's stage."""
    is_local = False
    """Whether nothing is computed elsewhere."""

    def __init__(
        self,
        pre: nn.Module,
        post: nn.Module,
        images: Any,
        *,
        mixing: Shield | ShieldConfig | Mapping[str, Any] | None = None,
        train: Any = None,
        attributes: Sequence[str] | None = None,
        name: str | None = None,
        keys: Keys = "secret",
        report: bool = True,
        on_predictions: Callable[[np.ndarray, np.ndarray], None] | None = None,
        seed: int = 0,
        compute: ComputeConfig | None = None,
    ) -> None:
        if keys not in get_args(Keys):
            raise RequestError(f"keys: must be secret or seeded, is {keys!r}")
        self.name = validate_node_name(name) if name else None
        self.compute = Compute(compute or ComputeConfig())
        self.mixing = shield_settings(mixing)
        self.keys: Keys = keys
        self.report, self.on_predictions = report, on_predictions
        self.seed = seed
        self.shares: dict[Part, Images] = {"test": AttributeImages(images, "images")}
        if train is not None:
            self.shares["train"] = AttributeImages(train, "train")
        self.shape = self._check_shares()
        count = max(each.questions for each in self.shares.values())  # type: ignore[union-attr]
        self.attributes = name_attributes(attributes, count)
        self.features = stage_shape("pre", pre, self.shape)
        # Copies: one process may hold several edges that were given the same modules.
        self.hold_stages(nn.ModuleList([copy.deepcopy(pre), copy.deepcopy(post)]))

    def hold_stages(self, ends: nn.Module) -> None:
        """Take the stages, whose weights are still to come."""
        super().hold_stages(ends)
        self._training = EdgeTraining(self)
        self._pending: dict[int, PendingRequest] = {}
        self._first = 0

    @property
    def training(self) -> EdgeTraining:
        """Its side of split training; RuntimeError if it has none."""
        if self.terms.train != "split" or "train" not in self.shares:
            raise RuntimeError("this edge trains with nobody in this run")
        return self._training

    def _check_shares(self) -> Shape:
        """Return the shape of all images."""
        test, train = self.shares["test"], self.shares.get("train")
        assert isinstance(test, AttributeImages)
        if isinstance(train, AttributeImages):
            if train.shape != test.shape:
                raise DataError(f"train: images of {train.shape}, the others are {test.shape}")
            if not train.questions:
                raise DataError("train: must yield pairs (image, label), there are no labels")
            if test.questions not in (0, train.questions):
                raise DataError(
                    f"train: {train.questions} labels to an image, the others have {test.questions}"
                )
        return test.shape

    def describe_data(self) -> dict[str, int | str]:
        """Return what the cloud learns of the data."""
        test, trains = self.shares["test"], self.terms.train == "split"
        labelled = isinstance(test, AttributeImages) and test.questions > 0
        about: dict[str, int | str] = {
            "classes": LOGITS,
            "names": test.names if isinstance(test, AttributeImages) else "",
            "key": "",
            "shape": "x".join(map(str, self.shape)),
            "attributes": "\n".join(self.attributes),
            "reports": int(self._is_reporting and labelled),
            "group": group_size(self.mixing),
            "lasting": int(isinstance(self.vault, MemoryVault)),
            "train": len(self.shares.get("train", ())) if trains else 0,
            "validation": 0,
            "test": len(test),
        }
        return about | ({"name": self.name} if self.name else {})

    def roll_back(self, turn: int) -> None:  # noqa: ARG002
        """Forget pending requests: a run that goes back asks for all of a case again."""
        self._pending.clear()

    @property
    def _is_reporting(self) -> bool:
        return self.report and self.terms.report

    # ----------------------------------------------------------------------- requests

    @property
    def requests(self) -> int:
        """How many requests it takes to ask about all test images."""
        return -(-len(self.shares["test"]) // self.terms.request)

    def next_request(self) -> int | None:
        """Return the first request that has no answer yet, None if all have.

        No request is asked again once it is answered. With the last answer the secret is deleted
        that keys were drawn from.
        """
        while self._first < self.requests and self.vault.load(self._answer_name(self._first)):
            self._first += 1
        if self._first == self.requests:
            self.vault.delete(self.secret_name)
            return None
        return self._first

    def ask(self, number: int) -> np.ndarray:
        """Return what leaves: a request's images behind ``pre`` and shield; ValueError if none."""
        self.load_adopted()
        asked = self._pending[number] = self._make_request(number)
        return protocol.on_wire(asked.sent, self.terms.wire)

    def _make_request(self, number: int) -> PendingRequest:
        images, size = self.shares["test"], self.terms.request
        if not 0 <= number < self.requests:
            raise ValueError(f"request {number} of {self.requests}")
        own = np.arange(number * size, min((number + 1) * size, len(images)))
        randomness = self.randomness("request", number)
        x = torch.cat([images.batch(own)[0], self._decoys(images, own, randomness)])
        order = draw_permutations((len(x),), randomness)
        with torch.no_grad():
            sent, secret = self.shield.protect(self._features(x[order]), randomness)
        places = order.argsort()[: len(own)].numpy()
        return PendingRequest(own, places, secret, sent)

    def _features(self, x: torch.Tensor) -> torch.Tensor:
        pre = self.ends[0].eval()
        parts = map(self.compute.move_batch, x.split(AT_ONCE))
        return torch.cat([self.compute.forward(pre, part) for part in parts])

    def _decoys(self, images: Images, own: np.ndarray, randomness: Randomness) -> torch.Tensor:
        """Return what fills a request's groups, made of other images if there are any."""
        lacking = count_missing(len(own), self.mixing)
        if not lacking:
            return torch.empty(0, *self.shape)
        others = np.setdiff1d(np.arange(len(images)), own)
        others = others if len(others) else own
        drawn = others[draw_permutations((len(others),), randomness).numpy()][:DECOYS_OF]
        return make_decoys(images.batch(drawn)[0], lacking, randomness)

    def answer(self, number: int, outputs: torch.Tensor) -> None:
        """Finish a request with the cloud's outputs, and keep the predictions.

        Only the first answer to a request counts: a cloud can't try others, and count again.

        Raises
        ------
        ValueError
            If the answer is not to the pending request: another number or shape, NaN or infinity.
        """
        self.load_adopted()
        waiting = self.next_request()
        if waiting is None or 0 <= number < waiting:
            return
        if number != waiting:
            raise ValueError(f"an answer to request {number}, {waiting} waits for one")
        # In a fresh process the key is drawn again, from the vault's secret.
        asked = self._pending.get(number) or self._make_request(number)
        outputs = self.check_outputs(outputs, len(asked.sent))
        self._pending.pop(number, None)
        with torch.no_grad():
            restored = self.shield.restore(self.compute.move_batch(outputs), asked.secret)
            logits = self.compute.forward(self.ends[1].eval(), restored).cpu()
        wanted = len(logits), self.answer_shape[0] * self.answer_shape[1]
        if tuple(logits.shape) != wanted:
            raise ValueError(f"logits of shape {tuple(logits.shape)}, {wanted} are the model's")
        found = predict_answers(logits, self.answer_shape[1])[asked.places]
        kept = {"rows": torch.from_numpy(asked.rows), "answers": found.to(torch.int32)}
        self.vault.save(self._answer_name(number), kept, {})
        if self.on_predictions is None:
            return
        found = found[:, 0] if found.shape[1] == 1 else found
        try:
            self.on_predictions(asked.rows, found.numpy())
        except Exception as error:  # the cloud must not learn what goes wrong here
            log(WARN, "on_predictions: %s: %s", type(error).__name__, error)

    def check_outputs(self, outputs: torch.Tensor, count: int) -> torch.Tensor:
        """Return the cloud's outputs for so many rows; ValueError if they can't be."""
        shape = self.returned if self.returned is not None else tuple(outputs.shape[1:])
        return packing.validate_tensor("outputs", outputs, (count, *shape))

    def answer_locally(self) -> None:
        """Answer all requests here, where nothing is computed elsewhere."""
        self.load_adopted()
        for number in range(self.requests):
            self.answer(number, self._make_request(number).sent.cpu())

    def _answer_name(self, number: int) -> str:
        return f"{self.terms.case}-answers-{number:06d}"

    # --------------------------------------------------------------------- predictions

    def _load_predictions(self) -> np.ndarray:
        """Return what the vault holds, (N, A); -1 where no answer has come."""
        self.load_adopted()
        found = np.full((len(self.shares["test"]), self.answer_shape[0]), -1)
        for number in range(self.requests):
            if kept := self.vault.load(self._answer_name(number)):
                found[kept[0]["rows"].numpy()] = kept[0]["answers"].numpy()
        return found

    def predictions(self) -> np.ndarray:
        """Return the predictions for all images, in their order; -1 where no answer has come.

        Returns
        -------
        ndarray of int64
            Of shape (N,), or (N, A) where there are several questions.
        """
        found = self._load_predictions()
        return found[:, 0] if found.shape[1] == 1 else found

    def counts(self) -> np.ndarray:
        """Return how often which answer was given, (A, K, K): truth, then answer.

        Raises
        ------
        RuntimeError
            If this edge reports nothing, or has not all answers.
        ValueError
            If a label here is none of the model's answers.
        """
        if not self._is_reporting or not self.attributes:
            raise RuntimeError("this edge keeps to itself how often it was right")
        predicted, (_, answers) = self._load_predictions(), self.answer_shape
        missing, _ = np.nonzero(predicted < 0)
        if len(missing):
            number = missing[0] // self.terms.request
            raise RuntimeError(f"request {number} of {self.requests} was not answered")
        truth = self.shares["test"].attributes
        if truth.max() >= answers:
            raise ValueError(f"the model has {answers} answers, and there is a label beyond")
        counted = count_confusions(torch.from_numpy(predicted), torch.from_numpy(truth), answers)
        counts: np.ndarray = counted.numpy()
        return counts

    # ------------------------------------------------------------------------ messages

    def answer_adopt(self, config: Config, arrays: Arrays) -> RecordDict:
        """Take the first and the last stage."""
        self.adopt(arrays, config.get("attributes", 0), config.get("answers", LOGITS))
        return protocol.reply({"requests": self.requests})

    def answer_infer(self, config: Config, arrays: Arrays) -> RecordDict:
        """Finish the last request with the cloud's outputs, and send the next."""
        if self.is_local:
            self.answer_locally()
            return protocol.reply({"done": 1})
        if "outputs" in arrays:
            self.answer(config["number"], arrays["outputs"])
        number = self.next_request()
        if number is None:
            return protocol.reply({"done": 1})
        return protocol.reply({"done": 0, "number": number}, mixtures=self.ask(number))

    handlers = {
        protocol.ADOPT: answer_adopt,
        protocol.INFER: answer_infer,
        protocol.COUNTS: lambda edge, *_: protocol.reply({}, counts=edge.counts()),
        protocol.MIXTURES: lambda edge, *request: edge.training.send_mixtures(*request),
        protocol.OUTPUTS: lambda edge, *request: edge.training.send_loss(*request),
        protocol.ENDS: lambda edge, *request: edge.training.send_gradients(*request),
    }
