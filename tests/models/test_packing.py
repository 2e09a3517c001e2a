"""Many tensors in one array: what goes in comes out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pudica.models import packing


def model() -> nn.Module:
    """Return a model with float32 and float64 values and integer and empty buffers."""
    made = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(4, 2).double())
    made.register_buffer("empty", torch.zeros(0, 5))
    made.register_buffer("scalar", torch.tensor(0.0))
    return made


def filled(seed: int) -> nn.Module:
    """Return the model with random values; counts as large as float32 can tell apart."""
    made, generator = model(), torch.Generator().manual_seed(seed)
    for tensor in made.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
        else:
            tensor.fill_(2**24 - seed)
    return made


def test_a_state_comes_out_as_it_went_in() -> None:
    """Whole numbers up to 2²⁴ exactly; float64 to the precision of float32."""
    source, target = filled(1), model()
    values = packing.pack(packing.state_tensors(source))
    packing.unpack(torch.from_numpy(values), packing.state_tensors(target))
    wanted = source.state_dict()
    assert any(value.dtype == torch.float64 for value in wanted.values())
    assert any(value.dtype == torch.int64 for value in wanted.values())
    for name, value in target.state_dict().items():
        assert value.dtype == wanted[name].dtype
        assert torch.equal(value, wanted[name].float().to(value.dtype)), name


def test_packed_is_one_vector_in_the_order_of_the_state() -> None:
    source = filled(2)
    state = source.state_dict()
    values = packing.pack(packing.state_tensors(source))
    assert values.dtype == np.float32
    assert values.shape == (sum(value.numel() for value in state.values()),)
    expected = np.concatenate([v.double().numpy().ravel() for v in state.values()])
    assert np.array_equal(values, expected.astype(np.float32))


def test_packed_values_are_a_copy() -> None:
    """A message must not change because the model goes on learning."""
    for tensors in ([torch.ones(4)], [torch.ones(4), torch.ones(2)]):
        values = packing.pack(tensors)
        for tensor in tensors:
            tensor.zero_()
        assert (values == 1).all()


def test_unpacking_writes_into_parameters_that_learn() -> None:
    target = nn.Linear(2, 1)
    before = target.weight
    packing.unpack(torch.tensor([1.0, 2.0, 3.0]), packing.state_tensors(target))
    assert target.weight is before
    assert target.weight.requires_grad
    assert target.weight.tolist() == [[1.0, 2.0]]
    assert target.bias.tolist() == [3.0]


def test_strided_tensors_are_packed_by_index() -> None:
    matrix = torch.arange(6.0).reshape(2, 3).T
    assert packing.pack([matrix]).tolist() == [0, 3, 1, 4, 2, 5]
    target = torch.zeros(2, 3).T
    packing.unpack(torch.from_numpy(packing.pack([matrix])), [target])
    assert torch.equal(target, matrix)


def test_nothing_is_packed_as_nothing() -> None:
    assert packing.pack([]).shape == (0,)
    packing.unpack(torch.zeros(0), [])
    assert packing.pack(packing.state_tensors(nn.ReLU())).dtype == np.float32


@pytest.mark.parametrize("shape", [(0,), (2,), (4,), (3, 1), (1, 3), ()])
def test_another_number_of_values_is_refused_and_nothing_is_written(shape: tuple[int, ...]) -> None:
    target = nn.Linear(2, 1)
    before = packing.pack(packing.state_tensors(target))
    with pytest.raises(ValueError, match="must hold 3 values, has the shape"):
        packing.unpack(torch.ones(shape), packing.state_tensors(target))
    assert np.array_equal(packing.pack(packing.state_tensors(target)), before)


def test_negative_variances_and_counts_are_refused() -> None:
    named = list(filled(0).state_dict().items())
    values = torch.from_numpy(packing.pack([value.abs() for _, value in named]))
    packing.validate_statistics(values, named)
    before = 0
    for name, tensor in named:
        if not tensor.numel():
            continue
        wrong, before = values.clone(), before + tensor.numel()
        wrong[before - 1] = -1
        if name.endswith(("running_var", "num_batches_tracked")):
            with pytest.raises(ValueError, match=f"'{name}' is negative"):
                packing.validate_statistics(wrong, named)
        else:
            packing.validate_statistics(wrong, named)
    with pytest.raises(ValueError, match="must hold"):
        packing.validate_statistics(values[:-1], named)
