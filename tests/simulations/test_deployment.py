"""Organisers, nodes, and what they check before anything starts."""

from __future__ import annotations

import contextlib
import json
import re
import ssl
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import psutil
import pytest
import yaml
from click.testing import Result
from cryptography import x509
from node_files import node_file
from PIL import Image

from pudica import analysis
from pudica.clients import protocol
from pudica.clients.assignments import (
    EdgeAssignment,
    NodeLimits,
    ParticipantAssignment,
    ParticipantConfig,
)
from pudica.clients.data import DataConfig
from pudica.clients.runtime.node import NodeConfig
from pudica.clients.shields import parse_config
from pudica.models.compute import ComputeConfig
from pudica.models.errors import RequestError
from pudica.models.optimizers import OptimizerConfig
from pudica.models.training import TrainingConfig
from pudica.simulations.deployment import authority, checking
from pudica.simulations.deployment import organiser as organisers
from pudica.simulations.deployment.auditing import publish_manifest, verify_leaderboard
from pudica.simulations.deployment.invitation import Invitation
from pudica.simulations.deployment.kit import Kit
from pudica.simulations.deployment.organiser import OrganiserServer
from pudica.simulations.deployment.processes import Programs
from pudica.simulations.engines import inprocess
from pudica.simulations.programs.calling import LOOPBACK, find_free_port
from pudica.strategies.core.registry import REGISTRY, RegisteredNode
from pudica.strategies.loading import load_experiment


@pytest.fixture
def organiser(tmp_path: Path) -> OrganiserServer:
    return OrganiserServer.create(tmp_path / "organiser", LOOPBACK, find_free_port())


@pytest.fixture
def invitation(organiser: OrganiserServer) -> Invitation:
    return Invitation.read(organiser.folder / "invitation.yaml")


@pytest.fixture
def kit(tmp_path: Path, invitation: Invitation) -> Kit:
    return Kit.create(tmp_path / "ann", "ann", invitation)


# ---------------------------------------------------------------------------- secrets


def test_secrets_are_for_their_owner_alone(organiser: OrganiserServer, kit: Kit) -> None:
    for folder in (organiser.folder, kit.folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for file in (path for path in folder.rglob("*") if path.is_file()):
            if b"PRIVATE KEY" in file.read_bytes():
                assert stat.S_IMODE(file.stat().st_mode) == 0o600
    keys = [path.name for path in kit.folder.iterdir() if b"PRIVATE" in _bytes(path)]
    assert keys == ["node.key"]
    assert "PRIVATE" not in (organiser.folder / "invitation.yaml").read_text()


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def test_a_key_that_others_may_read_is_refused(kit: Kit) -> None:
    (kit.folder / "node.key").chmod(0o644)
    with pytest.raises(RequestError, match="may be read by others: chmod 600"):
        kit.up()
    assert kit.programs.find_process("supernode") is None


def test_nothing_that_nodes_may_not_know_is_in_the_bundle(
    organiser: OrganiserServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the seed, from which noise may come; not where the organiser's files are."""
    monkeypatch.setattr(organisers.FlowerRun, "run", lambda self: None)
    wanted = load_experiment("themis-digits", ["seed=4711", "description=hidden"])
    organiser.run(wanted, organiser.folder / "results" / "one")
    app = organiser.flower / "app"
    config = tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert set(config) == {"experiment", "out", "set", "vault", "engine"}
    for file in app.rglob("*"):
        assert b"4711" not in _bytes(file)
        assert str(organiser.folder).encode() not in _bytes(file)
    assert "4711" in (organiser.folder / config["experiment"]).read_text()


def test_certificates_hold_by_the_strictest_rules(organiser: OrganiserServer) -> None:
    """Those of Python 3.13, and those of a server that is reached by number or name."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(organiser.folder / "server.crt", organiser.folder / "server.key")
    trust = ssl.create_default_context(cafile=organiser.folder / "ca.crt")
    trust.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    for name in (LOOPBACK, "localhost"):
        ways = [ssl.MemoryBIO() for _ in "1234"]
        there = trust.wrap_bio(ways[0], ways[1], server_hostname=name)
        here = server.wrap_bio(ways[2], ways[3], server_side=True)
        for _ in range(4):
            for end, out, to in ((there, ways[1], ways[2]), (here, ways[3], ways[0])):
                with contextlib.suppress(ssl.SSLWantReadError):
                    end.do_handshake()
                to.write(out.read())
        assert there.version() == "TLSv1.3"
        assert there.getpeercert()


def test_cases_may_not_undo_what_a_deployment_sets(
    organiser: OrganiserServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OrganiserServer, "is_up", lambda self: True)
    monkeypatch.setattr(OrganiserServer, "nodes", [RegisteredNode("ann", 1, "", "")])
    weak = ["split.cases={weak: {noise: seeded}}"]
    with pytest.raises(RequestError, match="case 'weak' sets noise, which a deployment sets to"):
        organiser.prepare("split-digits", weak, None)
    assert organiser.prepare("split-digits", [*weak, "split.noise=secret"], None)


def test_a_server_is_known_by_its_authority_alone(
    organiser: OrganiserServer, tmp_path: Path
) -> None:
    other = OrganiserServer.create(tmp_path / "other", LOOPBACK, find_free_port())
    certificate = x509.load_pem_x509_certificate((organiser.folder / "server.crt").read_bytes())
    for folder, known in ((organiser.folder, True), (other.folder, False)):
        issuer = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        try:
            certificate.verify_directly_issued_by(issuer)
        except Exception:
            assert not known
        else:
            assert known


# ------------------------------------------------------------------------ registering


def test_each_name_and_each_key_once(
    organiser: OrganiserServer, kit: Kit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(OrganiserServer, "is_up", lambda self: True)
    monkeypatch.setattr(
        OrganiserServer, "_query_flower", lambda self, *_: {"success": True, "node-id": "7"}
    )
    assert organiser.register(kit.public_key, "ann").node == 7
    with pytest.raises(RequestError, match="a node 'ann' is registered already"):
        organiser.register(kit.public_key, "ann")
    with pytest.raises(RequestError, match="this key is registered already, as 'ann'"):
        organiser.register(kit.public_key, "bob")
    with pytest.raises(RequestError, match=r"the name '\.\./x'"):
        organiser.register(kit.public_key, "../x")
    (tmp_path / "no.pub").write_text("ssh-rsa nonsense")
    with pytest.raises(RequestError, match="holds no public key"):
        organiser.register(tmp_path / "no.pub", "bob")
    assert [entry.name for entry in organiser.nodes] == ["ann"]


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (("run", "themis-digits"), "the server is not up"),
        (("register", "nobody.pub"), "can't read nobody.pub"),
        (("up", "--folder", "nowhere"), "is no organiser's folder"),
        (("node", "ann", "--invitation", "nothing.yaml"), "can't read the invitation"),
        (("try", "themis-digits", "--nodes", "9"), "--nodes 9: themis-digits has 5"),
    ],
)
def test_wrong_requests_say_what_to_do(
    organiser: OrganiserServer,
    pudica: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    why: str,
) -> None:
    monkeypatch.chdir(organiser.folder)
    result = pudica("deploy", *command)
    assert result.exit_code == 2
    assert why in result.stderr


def test_what_is_up_is_left_as_it_is(
    organiser: OrganiserServer, kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cron` may call it every minute."""
    told: list[str] = []
    for folder in (organiser, kit):
        monkeypatch.setattr(folder.programs, "find_process", lambda _: psutil.Process())
        monkeypatch.setattr(folder.programs, "notify", told.append)
        monkeypatch.setattr(folder.programs, "start", None)
        folder.up()
    assert told == ["server and gate are running already", "the node is running already"]


def test_another_port_is_in_the_invitation(organiser: OrganiserServer) -> None:
    path = organiser.folder / "organiser.yaml"
    path.write_text(path.read_text().replace(f"port: {organiser.config.port}\n", "port: 4711\n"))
    told: list[str] = []
    changed = OrganiserServer(organiser.folder, told.append)
    for _ in range(2):
        changed._write_invitation()
        invitation = Invitation.read(organiser.folder / "invitation.yaml")
        assert invitation.server == f"{LOOPBACK}:4711"
    (line,) = told
    assert "give it to all participants again" in line


def test_a_key_that_was_removed_is_explained(
    organiser: OrganiserServer, kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: str) -> dict[str, Any]:
        raise RequestError("flwr supernode register: [code: 23] Public key already in use.")

    monkeypatch.setattr(organiser, "is_up", lambda: True)
    monkeypatch.setattr(organiser, "_query_flower", refuses)
    with pytest.raises(RequestError, match="The participant makes a new one"):
        organiser.register(kit.public_key, "ann")


def test_a_folder_that_is_in_use_is_left_alone(organiser: OrganiserServer, kit: Kit) -> None:
    with pytest.raises(RequestError, match="is not empty"):
        OrganiserServer.create(organiser.folder, LOOPBACK, 8100)
    with pytest.raises(RequestError, match="is not empty"):
        Kit.create(kit.folder, "ann", Invitation.read(kit.folder / "invitation.yaml"))


# ---------------------------------------------------------------- what a node agrees to


def told(**settings: Any) -> dict[str, Any]:
    return {
        "run": "run",
        "data": DataConfig(root=Path("theirs")),
        "data_seed": 1,
        "partition": 1,
        "partitions": 3,
        "compute": ComputeConfig(),
        **settings,
    }


def participant(model: str = "own") -> ParticipantAssignment:
    return ParticipantAssignment(
        **told(),
        participant=ParticipantConfig(model=model, name="ann"),
        training=TrainingConfig(),
        training_seed=2,
    )


def edge(shield: dict[str, Any], **settings: Any) -> EdgeAssignment:
    asked = {
        "case": "main",
        "model": "cnn-tiny",
        "cut": "2",
        "fronts": "private",
        "seed": 1,
        "noise": "secret",
        "batch_size": 8,
        "wire": "float32",
        "optimizer": OptimizerConfig(),
    }
    return EdgeAssignment(**told(), **{**asked, **settings}, shield=parse_config(shield))


def node(tmp_path: Path, **settings: Any) -> NodeConfig:
    return NodeConfig.read(node_file(tmp_path / "node.yaml", **settings))


def test_an_own_model_wins_and_one_must_be_named(tmp_path: Path) -> None:
    agreed = node(tmp_path, model="mlp", device="cpu", threads=2).agree_to(participant("softmax"))
    assert isinstance(agreed, ParticipantAssignment)
    assert agreed.participant.model == "mlp"
    assert agreed.compute.threads == 2
    with pytest.raises(RuntimeError, match="between own models: name one"):
        node(tmp_path).agree_to(participant())


def test_the_organiser_says_neither_which_files_are_read_nor_which_column_counts(
    tmp_path: Path,
) -> None:
    theirs = DataConfig(name="parquet", path=Path("/home/ann"), label="income", download=True)
    asked = participant("mlp").model_copy(update={"data": theirs})
    open_ = node(tmp_path).agree_to(asked).data
    assert (open_.path, open_.download, open_.label) == (None, False, "income")
    own = {"name": "parquet", "path": "mine"}
    assert node(tmp_path, data=own).agree_to(asked).data.label is None
    brought = ParticipantConfig(model="mlp", name="ann", weights=Path("/theirs"))
    asked = asked.model_copy(update={"participant": brought})
    assert node(tmp_path).agree_to(asked).participant.weights is None  # type: ignore[union-attr]


def test_own_images_are_wholly_ones_own(tmp_path: Path) -> None:
    own = node(tmp_path, data={"name": "image-folder", "path": "mine"}, model="mlp")
    agreed = own.agree_to(participant())
    assert (agreed.whole, agreed.data.path) == (True, tmp_path / "mine")
    elsewhere = node(tmp_path, data={"root": "mine"}, model="mlp").agree_to(participant())
    assert (elsewhere.whole, elsewhere.data.root) == (False, tmp_path / "mine")


def test_a_device_sends_nothing_but_behind_the_shield_it_names(tmp_path: Path) -> None:
    laplace = {"name": "batch-norm-laplace", "epsilon": 5.0, "sensitivity": "experiments"}
    own = node(tmp_path, systems=["split"], shield={"name": laplace["name"], "epsilon": 5.0})
    assert own.agree_to(edge(laplace))
    for weaker in ({**laplace, "epsilon": 50.0}, {"name": "none"}):
        with pytest.raises(RuntimeError, match="sends nothing but behind"):
            own.agree_to(edge(weaker))
    for key, value in {"noise": "seeded", "plain_to_cloud": True, "fronts": "average"}.items():
        with pytest.raises(RuntimeError, match=f"wants {key.removesuffix('s')}"):
            own.agree_to(edge(laplace, **{key: value}))
    more = node(
        tmp_path,
        systems=["split"],
        shield={"name": laplace["name"], "epsilon": 5.0},
        releases=3,
        cut="2",
        fronts=["average"],
    )
    theirs = NodeLimits(epsilon=99, delta=0.5, activations=99, front=None)
    limited = more.agree_to(edge(laplace, fronts="average", releases=9, limits=theirs))
    wanted = NodeLimits(epsilon=None, delta=None, activations=3, front=None)
    assert limited.limits == wanted  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="wants cut: 0"):
        more.agree_to(edge(laplace, fronts="average", cut="0"))
    with pytest.raises(RuntimeError, match="set shield in node"):
        node(tmp_path, systems=["split"]).agree_to(edge(laplace))
    assert node(tmp_path, systems=["split"], trust_organiser=True).agree_to(edge({"name": "none"}))
    with pytest.raises(RuntimeError, match="takes part in themis, not in split"):
        node(tmp_path).agree_to(edge({"name": "none"}))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"systems": []}, "systems"),
        ({"systems": ["faces"]}, "systems"),
        ({"server": "somewhere"}, "server"),
        ({"name": "../x"}, "name"),
        ({"mixing": 1}, "mixing"),
        ({"shield": {"name": "clipped-gaussian"}}, "shield"),
        ({"shield": {"name": "batch-norm-laplace", "sigma": 1}}, "shield"),
        ({"modle": "mlp"}, "unknown key 'modle'. Did you mean 'model'?"),
    ],
)
def test_settings_that_make_no_sense_are_named(
    tmp_path: Path, settings: dict[str, Any], why: str
) -> None:
    with pytest.raises(RequestError, match=re.escape(f"node.yaml: {why}")):
        node(tmp_path, **settings)


# ----------------------------------------------------------------------------- checking


def findings(kit: Kit, **settings: Any) -> dict[str, checking.CheckResult]:
    path = kit.folder / "node.yaml"
    values = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**values, **settings}))
    return {finding.name: finding for finding in checking.check_node(path)}


def test_a_check_looks_at_everything_and_says_what_is_wrong(
    kit: Kit, pudica: Callable[..., Result], tmp_path: Path
) -> None:
    own = {"data": {"name": "digits"}, "model": "cnn-tiny"}
    fine = findings(kit, **own)
    assert {what for what, finding in fine.items() if not finding.passed} == {"server"}
    assert "does not answer" in fine["server"].message
    assert "1x8x8 in 10 classes" in fine["data"].message
    assert "ms an image" in fine["model"].message

    unknown = findings(kit, data={})
    assert unknown["model"].passed
    assert "tried when the node joins" in unknown["model"].message
    assert "there is no such file" in findings(kit, model="nowhere.pt2")["model"].message
    assert "cannot import 'nowhere'" in findings(kit, model="custom:nowhere:net")["model"].message
    assert "set model in node.yaml" in findings(kit, model=None)["model"].message
    findings(kit, **own)

    folder = tmp_path / "pictures"
    for part in ("train", "test"):
        for name in ("cats", "dogs"):
            (folder / part / name).mkdir(parents=True)
            for number in range(8):
                picture = Image.new("RGB", (8, 8), (number, len(part), len(name)))
                picture.save(folder / part / name / f"{number}.png")
    shown = {"name": "image-folder", "path": str(folder)}
    told = findings(kit, data={**shown, "split": "own"})["test labels"]
    assert not told.passed
    assert "16 labelled test images" in told.message
    assert findings(kit, data={**shown, "split": "public"})["test labels"].passed

    (kit.folder / "node.key").chmod(0o640)
    invitation = Invitation.read(kit.folder / "invitation.yaml")
    older = invitation.model_copy(update={"versions": {"torch": "1.0"}, "code": "another"})
    older.write(kit.folder / "invitation.yaml")
    wrong = findings(kit, systems=["split"], data={"name": "parquet"}, model="lenet-7")
    assert "nothing says how images are protected" in wrong["settings"].message
    assert "may be read by others" in wrong["key of this node"].message
    assert "another version of pudica's code" in wrong["versions"].message
    assert "1.0 at the organiser's" in wrong["versions"].message
    assert "was not found" in wrong["data"].message
    assert not wrong["model"].passed
    result = pudica("node", "check", str(kit.folder / "node.yaml"))
    assert result.exit_code == 2
    assert "✗ server" in result.stdout


def test_a_certificate_that_has_expired_is_named(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authority, "AUTHORITY_DAYS", 0)
    authority.create_authority(kit.folder / "ca.crt", kit.folder / "ca.key")
    found = findings(kit)["certificate"]
    assert not found.passed
    assert "this machine's clock says" in found.message
    with pytest.raises(RequestError, match="ask the organiser for a new invitation"):
        kit.up()


# ----------------------------------------------------------------------------- programs


SLEEPS = ("-c", "import time; print('ready', flush=True); time.sleep(60)")


def test_programs_outlive_who_started_them_and_are_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pudica.simulations.deployment.processes.format_command", " ".join)
    programs = Programs(tmp_path, {}, lambda _: None)
    programs.start("sleeper", SLEEPS)
    assert programs.wait("sleeper", lambda: programs.read_log_tail("sleeper") == "ready", 60)
    assert not programs.wait("sleeper", lambda: False, 0.2)
    again = Programs(tmp_path, {}, lambda _: None)
    found = again.find_process("sleeper")
    assert found is not None
    with pytest.raises(RequestError, match=f"sleeper is running already, process {found.pid}"):
        again.start("sleeper", SLEEPS)
    assert again.stop("sleeper")
    assert not psutil.pid_exists(found.pid) or found.status() == psutil.STATUS_ZOMBIE
    assert not again.stop("sleeper")
    with pytest.raises(RequestError, match="sleeper has ended; the end of its log:\nready"):
        again.wait("sleeper", lambda: False, 1)


def test_another_process_of_the_same_number_is_left_alone(tmp_path: Path) -> None:
    programs = Programs(tmp_path, {}, lambda _: None)
    stranger = subprocess.Popen([sys.executable, *SLEEPS], stdout=subprocess.DEVNULL)
    try:
        created = psutil.Process(stranger.pid).create_time() - 100
        (tmp_path / "gate.pid").write_text(json.dumps({"pid": stranger.pid, "created": created}))
        assert programs.find_process("gate") is None
        assert not programs.stop("gate")
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_port_that_is_taken_is_named(organiser: OrganiserServer) -> None:
    (organiser.flower / "work" / "superlink.log").write_text("[Errno 98] address already in use")
    organiser.programs.find_process = lambda _: None  # type: ignore[method-assign, assignment]
    with pytest.raises(RequestError, match=f"port {organiser.config.superlink} is taken"):
        organiser._wait_until_healthy("superlink", organiser.config.superlink)


# ------------------------------------------------------------------------ all of it


def _family(*folders: OrganiserServer | Kit) -> list[psutil.Process]:
    started = [folder.programs.find_process(name) for folder in folders for name in folder.PROGRAMS]
    assert all(started)
    return [p for one in started if one for p in (one, *one.children(recursive=True))]


SHORT = (
    *("training.epochs=2", "themis.epochs=1", "themis.examiner=null"),
    *("themis.release.secret=false", "themis.release.draws=2"),
)


@pytest.mark.slow
def test_three_nodes_over_tls_make_the_table_that_one_process_makes(tmp_path: Path) -> None:
    """And nobody who is not registered gets at the server while it is up."""
    names = load_experiment("themis-digits", []).names()[:3]
    organiser = OrganiserServer.create(tmp_path / "organiser", LOOPBACK, find_free_port())
    kits: list[Kit] = []
    try:
        organiser.up()
        invitation = Invitation.read(organiser.folder / "invitation.yaml")
        for name in names:
            kits.append(Kit.create(tmp_path / name, name, invitation))
            organiser.register(kits[-1].public_key, name)
            kits[-1].up()
        processes = _family(organiser, *kits)
        trust = ssl.create_default_context(cafile=organiser.folder / "ca.crt")
        outside = httpx.Client(
            base_url=f"https://{LOOPBACK}:{organiser.config.port}", verify=trust, trust_env=False
        )
        for path in ("/v1/control/start-run", "/v1/control/register-node"):
            assert outside.post(path).status_code == 404
        assert outside.post("/v1/fleet/pull-messages").status_code == 401

        experiment, directory = organiser.prepare("themis-digits", list(SHORT), None)
        organiser.run(experiment, directory)
        for kit in kits:
            checking.check_server(kit.config)
        _check_removal(organiser, kits[-1])
    finally:
        for ended in (*kits, organiser):
            ended.down()
    assert not any(map(_goes_on, processes))
    inprocess.run(experiment, tmp_path / "here" / directory.name)
    deployed, here = (
        analysis.load(run).drop(columns="run")
        for run in (directory, tmp_path / "here" / directory.name)
    )
    assert deployed.equals(here)
    for kit in kits:
        vault = kit.folder / "vault" / directory.name / kit.config.name
        assert (vault / "model-honest.safetensors").is_file()
    record = json.loads((directory / "run.json").read_text())
    assert record["engine"] == "deployment"
    assert sum(kind["count"] for kind in record["exchanges"].values()) / len(kits) < 60
    assert [
        RegisteredNode(**e).name for e in json.loads((organiser.folder / REGISTRY).read_text())
    ] == (names[:-1])
    assert protocol.code_fingerprint() == invitation.code
    _check_audit(directory, kits[0], organiser.folder / "ca.crt", tmp_path / "public")


def _goes_on(process: psutil.Process) -> bool:
    """Tell whether a program runs; one that ended by itself waits for its parent, this test."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def _check_removal(organiser: OrganiserServer, kit: Kit) -> None:
    """See that a node that is removed is refused, and gives up."""
    organiser.remove(kit.config.name)
    deadline = time.monotonic() + 60
    while kit.programs.find_process("supernode"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    with pytest.raises(RequestError, match=f"'{kit.config.name}'"):
        organiser.remove(kit.config.name)


def _check_audit(run: Path, kit: Kit, certificate: Path, public: Path) -> None:
    """See that what was published can be verified, and that nothing of it can be changed."""

    def wrong() -> list[str]:
        found = verify_leaderboard(public, certificate, kit.folder / "node.yaml", run)
        return [finding.name for finding in found if not finding.passed]

    published = analysis.publish(run, public)
    assert publish_manifest(run, public, published)
    assert wrong() == []
    pub, sig, text = (public.parent / "pub"), public / "manifest.json.sig", public / "manifest.json"
    openssl = ["openssl", "x509", "-in", str(certificate), "-pubkey", "-noout", "-out", str(pub)]
    subprocess.run(openssl, check=True)
    subprocess.run(
        ["openssl", "dgst", "-sha256", "-verify", pub, "-signature", sig, text], check=True
    )

    kept = {path: path.read_bytes() for path in (text, public / "leaderboard.csv")}
    manifest = json.loads(kept[text])
    entry = next(e for e in manifest["submissions"] if e["participant"] == kit.config.name)
    changes = {
        "predictions": ["organiser", "participants", "own submissions", "predictions"],
        "right": ["organiser", "leaderboard", "predictions"],
        "signature": ["organiser", "participants"],
    }
    for key, noticed in changes.items():
        before = entry[key]
        entry[key] = before - 1 if key == "right" else before[::-1]
        text.write_text(json.dumps(manifest))
        assert wrong() == noticed
        entry[key] = before
    entries = manifest["submissions"]
    manifest["submissions"] = [*entries, entry]
    text.write_text(json.dumps(manifest))
    assert "participants" in wrong()
    manifest["submissions"] = [e for e in entries if e is not entry]
    text.write_text(json.dumps(manifest))
    assert {"leaderboard", "own submissions"} <= set(wrong())
    text.write_bytes(kept[text])
    board = pd.read_csv(public / "leaderboard.csv")
    board["trained_accuracy"] = board["trained_accuracy"] + 1
    board.to_csv(public / "leaderboard.csv", index=False)
    assert wrong() == ["files", "leaderboard"]
    (public / "leaderboard.csv").write_bytes(kept[public / "leaderboard.csv"])
    assert wrong() == []
