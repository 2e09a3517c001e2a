"""``pudica node check``: everything that can be checked before a competition begins."""

from __future__ import annotations

import http.client
import json
import shutil
import ssl
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from pudica import models
from pudica.clients.assignments import OWN
from pudica.clients.runtime.node import NodeConfig
from pudica.clients.shields.disguises import Key
from pudica.models.compute import Compute, ComputeConfig
from pudica.models.errors import RequestError
from pudica.models.files import load_weights_into
from pudica.simulations.deployment import authority
from pudica.simulations.deployment.invitation import Invitation
from pudica.simulations.deployment.vocabulary import (
    NOT_KNOWN,
    Expected,
    describe_match,
    load_own_data,
)

SAMPLE = 64
AHEAD_SECONDS, BEHIND_SECONDS = 4.0, 250.0
FREE_BYTES = 2**30


class CheckResult(NamedTuple):
    """The result of one check.

    Attributes
    ----------
    name : str
    passed : bool
    message : str
    """

    name: str
    passed: bool
    message: str


def check_node(path: Path, expected: Expected = NOT_KNOWN) -> list[CheckResult]:
    """Run all checks of a node, even if some fail.

    Parameters
    ----------
    expected : Expected
        The names of classes and attributes that a run is expected to say.

    Raises
    ------
    RequestError
        If its settings can't be read.
    """
    config = NodeConfig.read(path)
    return [
        run_check("settings", lambda: _check_settings(config)),
        run_check("certificate", lambda: _check_certificate(config)),
        run_check("key of this node", lambda: _check_private_key(config)),
        run_check("server", lambda: check_server(config)),
        run_check("versions", lambda: _check_versions(path.parent)),
        run_check("vault", lambda: _check_vault(config)),
        run_check("device", lambda: _check_device(config)),
        run_check("data", lambda: _check_data(config)),
        run_check("names", lambda: describe_match(config, expected)),
        run_check("test labels", lambda: _check_test_labels(config)),
        run_check("model", lambda: _check_model(config, expected)),
        run_check("image key", lambda: _check_image_key(config)),
    ]


def run_check(name: str, check: Callable[[], str]) -> CheckResult:
    """Run one check; an exception is a failure."""
    try:
        return CheckResult(name, True, check())
    except RequestError as error:
        return CheckResult(name, False, str(error))
    except Exception as error:  # a participant's own model may raise anything
        return CheckResult(name, False, f"{type(error).__name__}: {error}")


def _check_settings(config: NodeConfig) -> str:
    protects = {"split": config.shield, "dlmt": config.key, "facemix": config.mixing}
    unprotected = [s for s in config.systems if s in protects and protects[s] is None]
    if unprotected and not config.trust_organiser:
        raise RequestError(
            f"systems: {', '.join(unprotected)}, and nothing says how images are protected there; "
            "set shield (split), key (dlmt) or mixing (facemix), or trust_organiser: true"
        )
    names = ", ".join(unprotected)
    trust = f"; the organiser decides how images are protected in {names}" if names else ""
    return f"'{config.name}', takes part in {', '.join(config.systems)}{trust}"


def _check_certificate(config: NodeConfig) -> str:
    authority.check_certificate(config.certificate)
    return "is valid today"


def _check_private_key(config: NodeConfig) -> str:
    authority.check_secret(config.private_key)
    return "only you can read it"


def check_server(config: NodeConfig) -> str:
    """Ask the organiser's server whether it knows this node.

    Raises
    ------
    RequestError
        If it does not answer, is not the organiser's, or refuses this node; the message says why.
    """
    host, _, port = config.server.rpartition(":")
    try:
        trust = ssl.create_default_context(cafile=config.certificate)
        connection = http.client.HTTPSConnection(host, int(port), timeout=10, context=trust)
        with closing(connection):
            headers = authority.build_signed_headers(config.private_key)
            connection.request("GET", "/health", headers=headers)
            with connection.getresponse() as answer:
                status, date, body = answer.status, str(answer.headers["date"]), answer.read()
    except ssl.SSLCertVerificationError as error:
        raise RequestError(
            f"{config.server} is not the organiser's, by its certificate ({error.verify_message}); "
            "ask the organiser for a new invitation"
        ) from error
    except OSError as error:
        raise RequestError(
            f"{config.server} does not answer ({error}); is the organiser's server up?"
        ) from error
    server_time = parsedate_to_datetime(date)
    ahead = (datetime.now(UTC) - server_time).total_seconds()
    # The server's date has no fractions of a second.
    if not -BEHIND_SECONDS < ahead < AHEAD_SECONDS + 1:
        raise RequestError(
            f"this machine's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} "
            f"the organiser's; allowed: {AHEAD_SECONDS:g} s ahead, {BEHIND_SECONDS:g} s behind"
        )
    if status >= 300:
        why = json.loads(body)["detail"] if body else f"with {status}; ask the organiser"
        raise RequestError(f"{config.server} refuses this node: {why}")
    return f"{config.server} answers, this node is registered, clocks agree"


def _check_versions(folder: Path) -> str:
    invitation = folder / "invitation.yaml"
    if not invitation.is_file():
        raise RequestError(f"there is no {invitation}; put the organiser's invitation there")
    if different := Invitation.read(invitation).find_differences():
        raise RequestError(
            "; ".join(different) + "; install the same versions, since results depend on them"
        )
    return "the same as the organiser's"


def _check_vault(config: NodeConfig) -> str:
    try:
        config.vault.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = config.vault / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RequestError(f"{config.vault} can't be written: {error.strerror}") from error
    free = shutil.disk_usage(config.vault).free
    if free < FREE_BYTES:
        raise RequestError(f"{config.vault}: only {free / 2**20:.0f} MiB are free; 1 GiB is needed")
    return f"{config.vault}, {free / 2**30:.0f} GiB free"


def _check_device(config: NodeConfig) -> str:
    compute = Compute(config.configure_compute(ComputeConfig()))
    memory = psutil.virtual_memory().available / 2**30
    return f"{compute.device.type}, {compute.config.threads} thread(s), {memory:.1f} GiB free"


def _check_data(config: NodeConfig) -> str:
    data = load_own_data(config)
    if data is None:
        return "the organiser's; checked when the node joins"
    sizes = f"{len(data.train)} + {len(data.validation)} + {len(data.test)}"
    noted = "".join(f"; {note}" for note in data.notes)
    return (
        f"{data.name}: {sizes} images of {'x'.join(map(str, data.shape))} in {data.num_classes} "
        f"classes: {', '.join(data.class_names[:12])}{noted}"
    )


def _check_test_labels(config: NodeConfig) -> str:
    """Check that a participant of a competition holds no test set: it is the organiser's alone."""
    data = load_own_data(config) if "themis" in config.systems else None
    if data is not None and data.has_own_test and len(data.test):
        raise RequestError(
            f"{data.name} has {len(data.test)} labelled test images, which a participant of a "
            "competition must not hold: remove them, or set data: {split: public}, and they are "
            "not read"
        )
    return "none are read"


def _check_model(config: NodeConfig, expected: Expected) -> str:
    if config.model is None or config.model == OWN:
        if "themis" in config.systems:
            raise RequestError(
                "participants compete with their own models: set model in node.yaml, to a name of "
                "the zoo (`pudica list`), custom:./my_models.py:callable or FILE.pt2"
            )
        return "none of its own"
    data = load_own_data(config)
    if data is None:
        models.check_available(config.model)
        if config.weights and not config.weights.is_file():
            raise RequestError(f"weights: there is no file {config.weights}")
        return f"{config.model}: found; tried when the node joins, once its data are known"
    classes = len(expected.classes or data.class_names)
    model = models.build_for(config.model, data.shape, num_classes=classes)
    if config.weights:
        load_weights_into(model, config.weights)
    compute = Compute(config.configure_compute(ComputeConfig()))
    model = compute.move_model(model).eval()
    images = compute.move_batch(torch.rand(SAMPLE, *data.shape))
    before, began = psutil.Process().memory_info().rss, time.perf_counter()
    with compute.use_threads(), torch.no_grad():
        logits = compute.forward(model, images)
    seconds = time.perf_counter() - began
    used = max(0, psutil.Process().memory_info().rss - before) / 2**20
    if logits.shape != (SAMPLE, classes) or not torch.isfinite(logits).all():
        raise RequestError(
            f"{config.model} returns shape {tuple(logits.shape)} for {SAMPLE} images; "
            f"({SAMPLE}, {classes}) finite numbers are expected"
        )
    return f"{config.model}: {1000 * seconds / SAMPLE:.2f} ms an image, {used:.0f} MiB"


def _check_image_key(config: NodeConfig) -> str:
    if config.key is None:
        return "none"
    key = Key.load(config.key)
    return f"{key.notation}, {key.fingerprint}"
