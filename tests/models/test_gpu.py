"""The same numbers on a GPU as on the CPU, within tolerance."""

from __future__ import annotations

import pytest
import torch

from pudica import models
from pudica.clients.data import DataConfig, load
from pudica.models import Compute, ComputeConfig, NoiseGenerator, Training, TrainingConfig
from pudica.models.randomness import torch_generator

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]


def test_task_gradient_on_the_gpu_is_that_on_the_cpu() -> None:
    model = models.build("resnet-8", num_classes=10).requires_grad_(False).eval()
    randomness = torch_generator(0, "gpu")
    x, e = torch.randn(2, 16, 3, 32, 32, generator=randomness)
    y = torch.randint(0, 10, (16,), generator=randomness)
    results = []
    for device in ("cpu", "cuda"):
        compute = Compute(ComputeConfig(device=device))
        noise = NoiseGenerator.untrained((3, 32, 32), 3.0, torch_generator(0, "noise"))
        noise = noise.to(compute.device)
        placed = compute.move_batch(x), y.to(compute.device), compute.move_batch(e)
        gradient, _ = noise.task_gradient(compute.move_model(model), *placed, compute)
        results.append(gradient.cpu())
    torch.testing.assert_close(results[0], results[1], rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"bfloat16": True, "channels_last": True}])
def test_training_on_the_gpu_learns_as_on_the_cpu(options: dict[str, bool]) -> None:
    data = load(DataConfig(name="digits"), seed=0)
    reached = []
    for device in ("cpu", "cuda"):
        model = models.build("cnn-small", num_classes=10, channels=1, image_size=8)
        compute = Compute(ComputeConfig.model_validate({"device": device, **options}))
        run = Training(model, TrainingConfig(epochs=8, learning_rate=0.05), 0, compute)
        while not run.finished:
            run.run_epoch(data.train, data.validation)
        reached.append(max(run.accuracies))
    assert reached[0] == pytest.approx(reached[1], abs=0.03)
