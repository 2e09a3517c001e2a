"""The interface of all shields, and the guarantees they state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from inspect import Parameter, Signature
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from pudica.clients.shields.analytic import analytic_epsilon
from pudica.clients.shields.discrete import NoiseKind
from pudica.clients.shields.grid import IntegerGrid
from pudica.models.errors import RequestError
from pudica.models.packing import all_finite
from pudica.models.randomness import Randomness, SystemGenerator
from pudica.models.settings import validate_settings

Shape = tuple[int, ...]

# A factor below 1 by more than float32's rounding error.
JUST_BELOW = 1 - 1e-6
ASSUMPTIONS = ("the front is public or frozen: a trained one reveals its data in other ways",)
"""Assumptions of every guarantee for a record."""
FLOATING_POINT_NOISE = "floating-point noise identifies its record by its last bits"
"""Why a mechanism that releases floats has no guarantee."""
REPLACE_ONE = "replace-one"
"""How neighbours differ, if nothing else is said."""
NOT_FINITE = "holds NaN or infinity"
REMOVES = "an obfuscation: what it removes can't be recovered, what it leaves everybody can see"
"""Why something lossy has no guarantee."""


def _require_name(schema: dict[str, Any]) -> None:
    schema["required"] = ["name", *(key for key in schema.get("required", []) if key != "name")]


class ShieldConfig(BaseModel):
    """The settings of a shield.

    Attributes
    ----------
    name : str
        Which shield it is.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, json_schema_extra=_require_name
    )

    name: str


@dataclass(frozen=True)
class Guarantee:
    """The differential privacy of one release.

    Attributes
    ----------
    unit : {"element", "record"}
        What neighbours differ in: one entry of one activation, or a whole example. They have the
        same size; one of them has the unit replaced (``relation``).
    epsilon : float or None
        None if there is no finite ε.
    reasons : tuple of str
        Assumptions of the guarantee, or why there is none.
    """

    unit: Literal["element", "record"]
    epsilon: float | None
    delta: float = 0.0
    reasons: tuple[str, ...] = ()
    relation: str = REPLACE_ONE

    def __str__(self) -> str:
        if self.epsilon is None:
            return f"no finite ε for one {self.unit}"
        delta = f" (δ = {self.delta:.4g})" if self.delta else ""
        relation = "" if self.relation == REPLACE_ONE else f" ({self.relation})"
        return f"ε = {self.epsilon:.4g}{delta} for one {self.unit}{relation}"


NO_NOISE = Guarantee("record", None, reasons=("no noise",))
"""The guarantee of a shield without noise."""


class Shield(nn.Module, ABC):
    """Protects a tensor before it leaves its owner.

    The shape of an example and the batch size are bound by :meth:`bind`, or learnt from the first
    tensor. One bound batch size is the most examples that are protected together.

    Parameters
    ----------
    **settings
        As in the shield's section of an experiment, without its name.

    Attributes
    ----------
    has_inverse : bool
        Whether :meth:`restore` needs a secret that :meth:`protect` returned.
    batch_matters : bool
        Whether the protection depends on the batch size. Otherwise one that was learnt grows.
    reasons : tuple of str
        Why there is no guarantee, where there is none.

    Raises
    ------
    RequestError
        An unknown or missing argument, or a value that is not allowed.
    """

    schema: ClassVar[type[ShieldConfig]] = ShieldConfig
    """Validates the settings."""
    has_inverse: ClassVar[bool] = False
    batch_matters: ClassVar[bool] = False
    reasons: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        name = type(self).__name__
        self.config: Any = validate_settings(self.schema, settings, name, excluded=("name",))
        self._shape: Shape | None = None
        self._batch_size = 0
        self._is_learnt = False

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "schema" in cls.__dict__:
            cls.__signature__ = _describe_signature(cls.schema)  # type: ignore[attr-defined]

    def bind(self, shape: Shape, batch_size: int) -> Self:
        """Set the shape of one example and the most protected together, or raise RequestError."""
        if not all(type(each) is int and each > 0 for each in (*shape, batch_size)):
            raise self._error(
                "shape and batch size must be whole numbers from 1 on, are "
                f"{tuple(shape)} and {batch_size}"
            )
        try:
            self._prepare(tuple(shape), batch_size)
        except ValueError as error:
            raise self._error(error) from error
        self._shape, self._batch_size, self._is_learnt = tuple(shape), batch_size, False
        return self

    def _prepare(self, shape: Shape, batch_size: int) -> None:
        """Make what hangs on shape and batch size; raise ValueError if the shield does not fit."""

    @property
    def is_bound(self) -> bool:
        """Whether shape and batch size are known."""
        return self._shape is not None

    @property
    def shape(self) -> Shape:
        """Shape of one example; RequestError if it is neither bound nor learnt yet."""
        if self._shape is None:
            raise self._error(
                "its shape is not known yet: protect a tensor, or bind(shape, batch_size)"
            )
        return self._shape

    @property
    def batch_size(self) -> int:
        """The most examples that are protected together; errors as of :attr:`shape`."""
        assert self.shape is not None
        return self._batch_size

    def _error(self, problem: object) -> RequestError:
        return RequestError(f"{type(self).__name__}: {problem}")

    def _learn(self, tensor: torch.Tensor) -> None:
        """Bind to the first tensor; let a batch size that was learnt grow where it may."""
        if not isinstance(tensor, torch.Tensor) or tensor.ndim < 2:
            got = tuple(tensor.shape) if hasattr(tensor, "shape") else type(tensor).__name__
            raise self._error(f"protects a batch of examples, a tensor (B, …), got {got}")
        if self._shape is None and len(tensor):
            self.bind(tuple(tensor.shape[1:]), len(tensor)).to(tensor.device)
            self._is_learnt = True
        elif self._is_learnt and not self.batch_matters:
            self._batch_size = max(self._batch_size, len(tensor))

    def protect(
        self, tensor: torch.Tensor, randomness: Randomness | None = None
    ) -> tuple[torch.Tensor, Any]:
        """Return the protected tensor, (B, …), and the secret that :meth:`restore` needs.

        Gradients flow through the protected tensor to ``tensor``.

        Parameters
        ----------
        randomness : Generator or SystemGenerator, optional
            Seeded for an experiment. By default the system's, as people's data need.

        Raises
        ------
        RequestError
            The tensor has another shape than the shield is bound to.
        ValueError
            It holds NaN or infinity, for which no bound holds.
        """
        self._learn(tensor)
        return self._protect(tensor, SystemGenerator() if randomness is None else randomness)

    @abstractmethod
    def _protect(
        self, tensor: torch.Tensor, randomness: Randomness
    ) -> tuple[torch.Tensor, Any]: ...

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the protected tensor alone; the secret to undo it, if there is one, is lost."""
        return self.protect(tensor)[0]

    def pack_secret(self, secret: Any) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """Return a secret as tensors, to keep it; :meth:`unpack_secret` reads them."""
        return {}

    def unpack_secret(self, tensors: dict[str, torch.Tensor]) -> Any:  # noqa: ARG002
        """Return the secret that :meth:`pack_secret` turned into tensors."""
        return None

    def restore(self, tensor: torch.Tensor, secret: Any) -> torch.Tensor:  # noqa: ARG002
        """Undo :meth:`protect` on a tensor that came back; noise is not undone."""
        return tensor

    def penalty(
        self,
        images: torch.Tensor,  # noqa: ARG002
        activations: torch.Tensor,  # noqa: ARG002
    ) -> torch.Tensor | None:
        """Return what a batch adds to the mean loss of the front that computes it; None: nothing.

        Called in training only, once for each batch, and again after a restart: it has to return
        the same for the same arguments.

        Parameters
        ----------
        images : Tensor of shape (B, C, H, W)
            As the front gets them.
        activations : Tensor of shape (B, …)
            Before they are protected, with their graph.

        Returns
        -------
        Tensor of shape () or None
            Differentiable with respect to ``activations``.
        """
        return None

    @classmethod
    def has_penalty(cls) -> bool:
        """Return whether it adds to a front's loss, and so needs a front that learns."""
        return cls.penalty is not Shield.penalty

    def claimed(self) -> Guarantee:
        """Return the guarantee that the shield's paper claims; by default, the one that holds."""
        return self.guarantee()

    def guarantee(self) -> Guarantee:
        """Return the guarantee for a whole example in one release; by default, that it has none."""
        return Guarantee("record", None, reasons=self.reasons)

    def neighbours(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return two batches that differ in one example, as far apart as we know how.

        Here black images or activations, and the same with the first of them white.
        """
        black = torch.zeros(self.batch_size, *self.shape)
        white = black.clone()
        white[0] = 1
        return black, white

    @property
    def grid(self) -> IntegerGrid | None:
        """The grid on which it releases whole steps; None if it releases floats."""
        return None

    def validate_input(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor as float32; raise ValueError if it can't be protected."""
        tensor = self.validate_shape(tensor)
        if not all_finite(tensor):
            raise ValueError(NOT_FINITE)
        return tensor

    def validate_shape(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor as float32 if its shape is right; raise ValueError otherwise.

        Float32, because the noise has no more bits: further bits of a float64 would get no noise.
        """
        if not len(tensor):
            raise ValueError("there is no example to protect")
        if tuple(tensor.shape[1:]) != self.shape or len(tensor) > self.batch_size:
            raise self._error(
                f"got {len(tensor)} examples of {tuple(tensor.shape[1:])}, it is bound to at most "
                f"{self.batch_size} of {self.shape}"
            )
        return tensor.float()


class Mechanism(Shield):
    """A shield with a guarantee: a bounded function plus noise calibrated to the bound.

    With ``epsilon`` None in its settings it adds no noise, for comparison.
    """

    kind: ClassVar[NoiseKind]

    @abstractmethod
    def bounded(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the bounded function of a float32 batch, without noise; differentiable."""

    @abstractmethod
    def scale_for(self, epsilon: float) -> float:
        """Return the scale of noise for an ε of the settings: b, or the standard deviation."""

    @property
    @abstractmethod
    def sensitivity(self) -> float | None:
        """How far the bounded function of a batch can move if one example is replaced.

        An L1 distance for Laplace noise, an L2 distance for Gaussian noise; None if unbounded.
        """

    @abstractmethod
    def assumptions(self) -> tuple[str, ...]:
        """Return the assumptions of the guarantee, or why there is none."""

    def noise_centres(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return what the noise is added to: the bounded function, rounded to the grid if any."""
        return self.bounded(tensor)

    def _protect(self, tensor: torch.Tensor, randomness: Randomness) -> tuple[torch.Tensor, None]:
        bounded = self.bounded(self.validate_input(tensor))
        if self.is_noiseless:
            return bounded, None
        noise = draw_noise(self.kind, tuple(bounded.shape), self.scale, randomness)
        return bounded + noise.to(bounded.device), None

    @property
    def is_noiseless(self) -> bool:
        """Whether the settings leave the noise out."""
        return self.config.epsilon is None

    @property
    def scale(self) -> float:
        """The noise's scale, from :meth:`scale_for`; 0 without noise."""
        return 0.0 if self.is_noiseless else self.scale_for(float(self.config.epsilon))

    def claimed(self) -> Guarantee:
        """Return the guarantee that the shield's paper claims; none without noise."""
        return NO_NOISE if self.is_noiseless else self.paper_guarantee()

    def paper_guarantee(self) -> Guarantee:
        """Return the guarantee that the shield's paper calibrates its noise to."""
        return self.guarantee()

    def guarantee(self) -> Guarantee:
        """Return that nothing holds for a record with floating-point noise, and what would hold."""
        if self.is_noiseless:
            return NO_NOISE
        ideal = self.guarantee_in_real_numbers()
        if ideal.epsilon is None:
            return ideal
        return Guarantee(
            "record", None, reasons=(FLOATING_POINT_NOISE, f"in real numbers: {ideal}")
        )

    def guarantee_in_real_numbers(self) -> Guarantee:
        """Return the guarantee that sensitivity and scale would give with exact real numbers."""
        distance, delta = self.sensitivity, getattr(self.config, "delta", 0.0)
        if distance is None:
            return Guarantee("record", None, reasons=self.assumptions())
        if self.kind == "laplace":
            return Guarantee("record", distance / self.scale, reasons=self.assumptions())
        epsilon = analytic_epsilon(self.scale / distance, delta)
        return Guarantee("record", epsilon, delta, self.assumptions())


def _describe_signature(schema: type[ShieldConfig]) -> Signature:
    parameters = []
    for name, field in schema.model_fields.items():
        if name != "name":
            default = Parameter.empty if field.is_required() else field.default
            kind, annotation = Parameter.KEYWORD_ONLY, field.annotation
            parameters.append(Parameter(name, kind, default=default, annotation=annotation))
    return Signature(parameters)


def draw_noise(kind: NoiseKind, shape: Shape, scale: float, randomness: Randomness) -> torch.Tensor:
    """Draw float32 noise of mean 0 and scale b, with variance 2b², or of a standard deviation."""
    if kind == "gaussian":
        values = randomness.standard_normal(shape, dtype=np.float32)
    else:
        # A random sign on an exponential draw takes half the time of Generator.laplace.
        values = randomness.standard_exponential(shape, dtype=np.float32)
        signs = np.unpackbits(np.frombuffer(randomness.bytes(-(-values.size // 8)), np.uint8))
        values *= 1 - 2 * signs[: values.size].reshape(shape).astype(np.float32)
    return torch.from_numpy(values) * scale
