"""The cloud of FaceMix: its model in three stages, and the edges that have joined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from torch import nn

from pudica.clients import protocol
from pudica.clients.data import ImageSet
from pudica.clients.facemix.images import AttributeImages, Images
from pudica.clients.facemix.terms import stage_shape
from pudica.clients.shields import Shape, build
from pudica.clients.shields.mixing import group_size, padded_count
from pudica.clients.shields.stages import StagedModel
from pudica.models.attributes import LOGITS
from pudica.models.compute import Compute
from pudica.models.errors import RequestError
from pudica.models.packing import model_arrays, select_prefix
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.joining import agree_on_names
from pudica.strategies.core.members import Member
from pudica.strategies.core.session import CLOUD
from pudica.strategies.core.strategy import RecordedStrategy
from pudica.strategies.facemix.config import FacemixConfig
from pudica.strategies.facemix.edges import EdgeMember, check_attributes, check_groups


class StagedStrategy(RecordedStrategy):
    """What holds a model in three stages, and knows the edges that run the first and the last."""

    system = "facemix"
    settings: FacemixConfig
    compute: Compute
    attributes: list[str]
    """What the questions are called that the model answers."""
    answers = LOGITS
    """How many answers each question has."""
    images: Images | None = None
    validation: Images | None = None
    fresh = True
    """Whether each message may reach a new process of its edge."""
    _stages: Sequence[nn.Module] = ()
    _model: StagedModel | None = None
    _config: Mapping[str, Any] = {}

    # ----------------------------------------------------------------------- the model

    @property
    def model(self) -> StagedModel:
        """All three stages, with the shield around the middle one; set once nodes have joined."""
        if self._model is None:
            raise RuntimeError("the model does not know the images' shape yet: call start, or join")
        return self._model

    def adopt_model(self, model: StagedModel) -> None:
        """Take a model with its shield."""
        self._model = self.compute.move_model(model)  # type: ignore[assignment]

    def _build_model(self, image: Shape) -> None:
        """Build the model of the stages for images of a shape; RequestError if they do not fit."""
        pre, main, post = self._stages
        sent = stage_shape("pre", pre, image)
        logits = stage_shape("post", post, stage_shape("main", main, sent))
        questions = len(self.attributes)
        if len(logits) != 1 or logits[0] % questions or logits[0] // questions < LOGITS:
            raise RequestError(
                f"post: must give logits of shape (images, {questions}·K), K the answers to each "
                f"of {questions} attributes, two at least; got "
                f"(images, {', '.join(map(str, logits))})"
            )
        self.answers = logits[0] // questions
        settings = self.settings
        most = padded_count(max(settings.training.batch_size, settings.request), settings.around)
        self.adopt_model(StagedModel(pre, main, post, build(settings.around, sent, most)))

    def initial_arrays(self) -> ArrayRecord:
        """Return the stages as they were given."""
        return self.arrays()

    def arrays(self) -> ArrayRecord:
        """Return the stages as they are now."""
        state = self.stage_state().items()
        return ArrayRecord({key: Array(value.cpu().numpy()) for key, value in state})

    def stage_state(self) -> dict[str, torch.Tensor]:
        """Return weights and buffers of the stages."""
        state = self.model.state_dict()
        return {key: value for key, value in state.items() if not key.startswith("shield.")}

    def replace_arrays(self, arrays: ArrayRecord) -> None:
        """Go on with other stages; the optimiser's state stays."""
        wanted = self.stage_state()
        if arrays.keys() != wanted.keys():
            different = sorted(set(arrays) ^ set(wanted))
            raise RequestError(
                f"arrays: {', '.join(different[:9])} is missing or unknown; wanted are the three "
                "stages' state_dict, as pre.*, main.*, post.*"
            )
        given = {key: torch.from_numpy(np.array(arrays[key].numpy())) for key in arrays}
        for key, value in given.items():
            if value.shape != wanted[key].shape:
                raise RequestError(
                    f"arrays: {key} of shape {tuple(value.shape)}, the module's is "
                    f"{tuple(wanted[key].shape)}"
                )
        self.model.load_state_dict(given, strict=False)

    def model_tensors(self) -> dict[str, torch.Tensor]:
        """Return the stages as a checkpoint holds them."""
        return {f"model/{key}": value for key, value in self.model.state_dict().items()}

    def load_model(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Load the stages of :meth:`model_tensors`."""
        self.model.load_state_dict(select_prefix("model/", tensors))

    # ---------------------------------------------------------------------- who is there

    @property
    def edges(self) -> dict[str, Member]:
        """What each edge said as it joined."""
        return self._members

    @property
    def shape(self) -> Shape:
        """Channels, height and width of an image."""
        return next(iter(self._members.values())).shape

    def join_request(self) -> dict[str, Any]:
        """Return the terms that edges agree to as they join."""
        settings, training = self.settings, self.settings.training
        return {
            "case": self.case,
            "request": settings.request,
            "batch_size": training.batch_size,
            "wire": settings.wire,
            "train": settings.train,
            "augment": training.augment,
            "class_weights": training.class_weights,
            "report": settings.report,
        }

    def read_member(self, words: Mapping[str, Any]) -> Member:
        """Return what an edge says as it joins; ValueError if the model is not for it."""
        member, group = EdgeMember.read(words), group_size(self.settings.around)
        if member.group != group:
            raise ValueError(f"mixes groups of {member.group}, the model is for groups of {group}")
        check_groups(member, self.settings)
        return member

    def agree(self, cohort: Cohort, joined: dict[str, Member]) -> None:
        """Leave out edges whose images or attributes do not fit; build the model for the others."""
        if isinstance(self.images, AttributeImages):
            agree_on_names(cohort, joined, self.images.names)
            cohort.require_min_replies(self.min_nodes, len(joined), protocol.JOIN)
        super().agree(cohort, joined)
        members = {n: m for n, m in joined.items() if isinstance(m, EdgeMember)}
        names = Counter(member.attributes for member in members.values() if member.attributes)
        if not self.attributes:
            self.attributes = names.most_common(1)[0][0].split("\n") if names else ["label"]
        for name, member in members.items():
            try:
                if member.attributes:
                    check_attributes(member.attributes, self.attributes)
            except ValueError as error:
                cohort.leave_out(name, str(error))
                del joined[name]
        cohort.require_min_replies(self.min_nodes, len(joined), protocol.JOIN)
        self.fresh = not all(member.lasting for member in members.values())
        shape = next(iter(joined.values())).shape
        for what, images in (("train", self.images), ("validation", self.validation)):
            if isinstance(images, AttributeImages) and images.shape != shape:
                raise RequestError(f"{what}: images of {images.shape}, the edges' are {shape}")
        self._build_model(shape)

    # ------------------------------------------------------------------------- messages

    def request(self, config: Mapping[str, protocol.Scalar], **arrays: Array) -> RecordDict:
        """Return a request of this case."""
        about = {"run": self.recorder.name, "case": self.case}
        return protocol.request({**self._config, **about, **config}, **arrays)

    def end_arrays(self) -> dict[str, Array]:
        """Return what edges need of the model: the first and the last stage, and what normalises.

        ``normalisation`` is (2, C), mean and deviation of the cloud's images in an experiment. It
        is left out in split training, where each edge normalises as its data say, and with a
        user's own images, which are as the model takes them.
        """
        ends = model_arrays(self.model.edge_stages).items()
        arrays = {name: Array(values) for name, values in ends}
        if isinstance(self.images, ImageSet):
            both = torch.stack([self.images.mean, self.images.std]).flatten(1)
            arrays["normalisation"] = Array(both.numpy().astype(np.float32))
        return arrays

    def log(self, stage: str, metric: str, value: float, node: str = CLOUD, **tags: Any) -> None:
        """Append one measurement of the rounds so far."""
        super().log(stage, metric, value, node, **tags)
