"""A THEMIS competition from joining to leaderboard, top to bottom."""

from __future__ import annotations

import secrets
import time

import numpy as np
import torch
from flwr.app import Array, RecordDict
from flwr.serverapp import Grid

from clients import protocol
from clients.data import ImageSet, Splits
from clients.protocol import Assignment
from models.compute import Compute
from models.generator import NoiseGenerator
from models.randomness import derive, torch_generator
from models.training import TrainingConfig
from strategies.exchange import Exchanges
from strategies.experiment import Experiment
from strategies.leaderboard import agreement, leaderboard
from strategies.recorder import Recorder
from strategies.themis.config import ThemisConfig
from strategies.themis.generator import GeneratorStage
from strategies.themis.protection import Denoiser, Examiner, hiding, noisy_chunks
from strategies.themis.rank_condition import Gaussian, rank_condition

JOIN_SECONDS = 120.0
SAMPLES = 8
# What does not differ between the cases is measured once, under no case's name.
SHARED = ""


def compete(grid: Grid, experiment: Experiment, recorder: Recorder) -> None:
    """Run the whole competition: join, local training, noise generator, evaluation."""
    competition = Competition(grid, experiment, recorder)
    with recorder.timed("join"):
        competition.join()
    with recorder.timed("local training"):
        competition.train_models()
    competition.evaluate_shared()
    for case, settings in experiment.themis.each_case().items():
        with recorder.timed(f"noise generator/{case}"):
            generator = competition.train_generator(case, settings)
        with recorder.timed(f"evaluation/{case}"):
            competition.evaluate(case, generator)
            competition.publish(case, settings, generator)


class Competition:
    """The organiser's state: participants who joined, the test set, the noise.

    Parameters
    ----------
    grid : Grid
    experiment : Experiment
    recorder : Recorder
    """

    def __init__(self, grid: Grid, experiment: Experiment, recorder: Recorder) -> None:
        self.experiment = experiment
        self.settings = experiment.themis
        self.recorder = recorder
        self.run = recorder.directory.name
        self.compute = Compute(experiment.client)
        self.data = experiment.load_data()
        experiment.check_models(self.data)
        self.exchanges = Exchanges(grid, recorder, {}, experiment.client.timeout)
        self.secret = self._secret()
        self._examiner: Examiner | None = None

    def _secret(self) -> int:
        """Return the seed of the test set's noise, kept in the organiser's checkpoint."""
        note = self.recorder.note
        if "secret" not in note:
            draw = secrets.randbits(63) if self.settings.release.secret else None
            note["secret"] = draw or derive(self.experiment.seed, "test-noise")
        return int(note["secret"])

    # ------------------------------------------------------------------------- joining

    def join(self) -> None:
        """Wait for the nodes, check their code, give each its participant."""
        nodes = self._wait_for_nodes()
        everyone = Exchanges(self.exchanges.grid, self.recorder, nodes, self.exchanges.timeout)
        hello = protocol.request({"run": self.run})
        greetings = everyone.ask(protocol.HELLO, dict.fromkeys(nodes, hello))
        names = self.experiment.names()
        placed: dict[str, int] = {}
        for node, content in greetings.items():
            words = content.config_records["config"]
            self._check_code(str(words["code"]))
            partition = int(words["partition"])  # type: ignore[arg-type]
            if 0 <= partition < len(names):
                placed[names[partition]] = nodes[node]
        self.exchanges.nodes = {name: placed[name] for name in names if name in placed}
        joined = self.exchanges.ask(protocol.JOIN, self._assignments())
        for name, content in joined.items():
            self._check_data(name, content)
        self.exchanges.nodes = {n: i for n, i in self.exchanges.nodes.items() if n in joined}
        self.exchanges.need(self.settings.min_participants, len(joined), protocol.JOIN)

    def _wait_for_nodes(self) -> dict[str, int]:
        """Return as many nodes as there are participants; their ids are random per run."""
        wanted, deadline = len(self.experiment.participants), time.monotonic() + JOIN_SECONDS
        while True:
            found = sorted(self.exchanges.grid.get_node_ids())
            if len(found) >= wanted:
                return {str(node): node for node in found}
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        if len(found) < self.settings.min_participants:
            raise RuntimeError(
                f"only {len(found)} of {wanted} nodes were there after {JOIN_SECONDS:g} s; start "
                f"more nodes, or give the simulation num-supernodes={wanted}"
            )
        self.recorder.event(f"starting with {len(found)} of {wanted} nodes")
        return {str(node): node for node in found}

    @staticmethod
    def _check_code(code: str) -> None:
        own = protocol.code_fingerprint()
        if code != own:
            raise RuntimeError(
                f"a node runs other code (fingerprint {code}) than the organiser ({own}): install "
                "the same version of pudica on both, and start `flwr run` from a directory that "
                "holds no folders called models or clients"
            )

    def _assignments(self) -> dict[str, RecordDict]:
        experiment, seed = self.experiment, self.experiment.seed
        compute = {key: getattr(experiment.client, key) for key in type(self.compute.config).model_fields}
        requests = {}
        for number, participant in enumerate(experiment.participants):
            if participant.name not in self.exchanges.nodes:
                continue
            assignment = Assignment(
                run=self.run,
                participant=participant,
                training=experiment.training,
                data=experiment.data,
                data_seed=derive(seed, "data"),
                training_seed=derive(seed, "participant", participant.name),
                partition=number,
                partitions=len(experiment.participants),
                compute={k: v for k, v in compute.items() if k in protocol.ComputeConfig.model_fields},  # type: ignore[arg-type]
            )
            requests[participant.name] = protocol.request(
                {"run": self.run, "assignment": assignment.model_dump_json()}
            )
        return requests

    def _check_data(self, name: str, content: RecordDict) -> None:
        words, own = content.config_records["config"], self.data
        if words["fingerprint"] != own.fingerprint:
            raise RuntimeError(
                f"{name} holds other data than the organiser: {words['classes']} classes of shape "
                f"{words['shape']} against {own.num_classes} of shape "
                f"{'x'.join(map(str, own.shape))}; give both the same data set"
            )

    # ------------------------------------------------------------------ local training

    def contestants(self) -> dict[str, tuple[str, str]]:
        """Return (node, variant) of every model that is trained, by display name."""
        cases = self.settings.each_case().values()
        cheaters = {name for case in cases for name in case.cheaters}
        names = list(self.exchanges.nodes)
        honest = {name: (name, "honest") for name in names}
        return honest | {
            f"{name} (cheating)": (name, "cheating") for name in names if name in cheaters
        }

    def train_models(self) -> None:
        """Let every participant train its private model, each at its own pace."""
        for variant in ("honest", "cheating"):
            chosen = {d: n for d, (n, v) in self.contestants().items() if v == variant}
            self._train_variant(variant, chosen)
        trained = [n for n in self.exchanges.nodes if self.recorder.finished(f"local/{n}")]
        self.exchanges.nodes = {name: self.exchanges.nodes[name] for name in trained}
        self.exchanges.need(self.settings.min_participants, len(trained), protocol.LOCAL)

    def _train_variant(self, variant: str, contestants: dict[str, str]) -> None:
        recorder, display = self.recorder, {node: name for name, node in contestants.items()}
        stage = "local training" if variant == "honest" else f"local training ({variant})"
        epochs = {
            name: recorder.position(f"local/{name}").get("epoch", 0) for name in contestants
        }
        schedules = {p.name: p.training or self.experiment.training for p in self.experiment.participants}
        total = sum(schedules[node].epochs for node in contestants.values())
        left = {n: node for n, node in contestants.items() if not recorder.finished(f"local/{n}")}

        def ask(name: str) -> RecordDict:
            return protocol.request(
                {"run": self.run, "variant": variant, "epoch": epochs[name] + 1}
            )

        def answer(node: str, content: RecordDict) -> RecordDict | None:
            name, metrics = display[node], content.metric_records["metrics"]
            epochs[name] += 1
            for metric in ("loss", "accuracy"):
                if metric in metrics:
                    recorder.log("local", metric, float(metrics[metric]), node=name, round=epochs[name])  # type: ignore[arg-type]
            done = bool(metrics["finished"])
            if done:
                recorder.log("local", "validation_accuracy", float(metrics["best"]), node=name)  # type: ignore[arg-type]
                recorder.finish(f"local/{name}")
                epochs[name] = schedules[node].epochs
            else:
                recorder.stand(f"local/{name}", {}, epoch=epochs[name])
            recorder.progress(stage, self._epochs_done(epochs, schedules, contestants), total, "epoch")
            return None if done else ask(name)

        self.exchanges.converse(protocol.LOCAL, {node: ask(n) for n, node in left.items()}, answer)

    def _epochs_done(
        self,
        epochs: dict[str, int],
        schedules: dict[str, TrainingConfig],
        contestants: dict[str, str],
    ) -> int:
        return sum(
            schedules[node].epochs if self.recorder.finished(f"local/{name}") else epochs[name]
            for name, node in contestants.items()
        )

    # ------------------------------------------------------------- the noise generator

    def untrained(self, bound: float) -> NoiseGenerator:
        """Return the generator before its training."""
        randomness = torch_generator(self.experiment.seed, "generator")
        return NoiseGenerator.initial(self.data.shape, bound, randomness)

    def train_generator(self, case: str, settings: ThemisConfig) -> NoiseGenerator:
        """Train one case's generator, or load it if that is done."""
        task = f"generator/{case}"
        stage = GeneratorStage(
            case,
            settings,
            self.data,
            self.experiment.seed,
            self.untrained(settings.M),
            self.run,
            self.exchanges,
            self.recorder,
        )
        if self.recorder.finished(task):
            return NoiseGenerator(self.recorder.arrays[task][:2], settings.M)
        generator = stage.train()
        self.recorder.arrays[task] = torch.from_numpy(generator.packed())
        self.recorder.finish(task)
        return generator

    # ---------------------------------------------------------------------- evaluation

    def evaluate_shared(self) -> None:
        """Measure what no case changes: plain images, untrained noise, implied densities."""
        contestants = self.contestants()
        with self.recorder.timed("evaluation/shared"):
            if self.settings.release.compare:
                self._release("plain", SHARED, contestants, None, 1)
                for bound in self.settings.release_bounds:
                    self._release_noisy("untrained", SHARED, contestants, self.untrained(bound))
            self._densities(contestants)

    def evaluate(self, case: str, generator: NoiseGenerator) -> None:
        """Release the noisy test set at every M and score the predictions."""
        for bound in self.settings.release_bounds:
            noise = NoiseGenerator(torch.from_numpy(generator.packed()), bound)
            self._release_noisy("trained", case, self._of_case(case), noise)

    def _of_case(self, case: str) -> dict[str, tuple[str, str]]:
        cheaters = self.settings.each_case()[case].cheaters
        return {
            name: (node, variant)
            for name, (node, variant) in self.contestants().items()
            if (variant == "cheating") == (node in cheaters)
        }

    def _release_noisy(
        self,
        release: str,
        case: str,
        contestants: dict[str, tuple[str, str]],
        noise: NoiseGenerator,
    ) -> None:
        self._release(release, case, contestants, noise, self.settings.release.draws)
        self._protect(release, case, noise)

    def _release(
        self,
        release: str,
        case: str,
        contestants: dict[str, tuple[str, str]],
        noise: NoiseGenerator | None,
        draws: int,
    ) -> None:
        bound = noise.bound if noise else 0.0
        stage = f"evaluation ({' '.join(filter(None, [release, case]))})"
        for draw in range(draws):
            task = f"evaluation/{case}/{release}/{bound:g}/{draw}"
            if not self.recorder.finished(task):
                right = self._right(contestants, noise, self._seed(release, case, bound, draw))
                for name, count in right.items():
                    self.recorder.log(
                        "evaluation",
                        "accuracy",
                        count / len(self.data.test),
                        node=name,
                        case=case,
                        release=release,
                        M=bound,
                        draw=draw,
                    )
                self.recorder.finish(task)
            self.recorder.progress(stage, draw + 1, draws, "draw")

    def _seed(self, release: str, case: str, bound: float, draw: int) -> int:
        return derive(self.secret, release, case, f"{bound:g}", draw)

    def _right(
        self, contestants: dict[str, tuple[str, str]], noise: NoiseGenerator | None, seed: int
    ) -> dict[str, int]:
        """Return how many released test images each contestant classified rightly."""
        right = dict.fromkeys(contestants, 0)
        for images, labels in self._released(noise, seed):
            for variant in ("honest", "cheating"):
                nodes = {n: name for name, (n, v) in contestants.items() if v == variant}
                request = protocol.request({"run": self.run, "variant": variant}, images=images)
                replies = self.exchanges.ask(protocol.PREDICT, dict.fromkeys(nodes, request))
                for node, content in replies.items():
                    right[nodes[node]] += self._score(node, content, labels)
                for node in set(nodes) - set(replies):
                    self.recorder.event(f"{node} predicted nothing for {len(labels)} test images")
        return right

    def _released(
        self, noise: NoiseGenerator | None, seed: int
    ) -> list[tuple[Array, np.ndarray]] | object:
        size = self.settings.release.images_per_message
        none = NoiseGenerator(torch.zeros(2, *self.data.shape), 0.0)
        for x, noisy, y in noisy_chunks(self.data.test, noise or none, seed, size):
            yield Array((noisy if noise else x).numpy()), y.numpy()

    def _score(self, node: str, content: RecordDict, labels: np.ndarray) -> int:
        """Count right predictions; a reply that is not one class per image scores nothing."""
        arrays = content.array_records.get("arrays", {})
        predictions = arrays["predictions"].numpy() if "predictions" in arrays else np.empty(0)
        if predictions.shape != labels.shape:
            self.exchanges.reject(
                node, f"predictions of shape {predictions.shape} for {len(labels)} images"
            )
            return 0
        return int((predictions == labels).sum())

    # ---------------------------------------------------------------------- protection

    def _densities(self, contestants: dict[str, tuple[str, str]]) -> None:
        """Ask for the density each model implies, which Eq. (1) needs."""
        if self.recorder.finished("densities"):
            return
        for variant in ("honest", "cheating"):
            nodes = {n: name for name, (n, v) in contestants.items() if v == variant}
            seed = derive(self.experiment.seed, "densities")
            request = protocol.request({"run": self.run, "variant": variant, "seed": seed})
            for node, content in self.exchanges.ask(
                protocol.DENSITY, dict.fromkeys(nodes, request)
            ).items():
                for key in ("mean", "variance"):
                    value = float(content.metric_records["metrics"][key])  # type: ignore[arg-type]
                    self.recorder.log("density", key, value, node=nodes[node])
        self.recorder.finish("densities")

    def _protect(self, release: str, case: str, noise: NoiseGenerator) -> None:
        """Measure how well the first draw of a release hides the test images."""
        task = f"protection/{case}/{release}/{noise.bound:g}"
        if self.recorder.finished(task):
            return
        seed, test = self._seed(release, case, noise.bound, 0), self.data.test
        sigma = noise.sigma().detach()
        values = {
            "mean_sigma": float(sigma.mean()),
            "mean_sigma_pixels": float((sigma * test.std).mean()),
            **hiding(test, noise, seed, None),
        }
        if self.settings.examiner:
            values |= self._examined(test, noise, seed)
        for metric, value in values.items():
            self.recorder.log(
                "protection", metric, value, case=case, release=release, M=noise.bound
            )
        self.recorder.finish(task)

    def _examined(self, test: ImageSet, noise: NoiseGenerator, seed: int) -> dict[str, float]:
        examiner = self.examiner()
        denoiser = examiner.best_denoiser(noise)
        after = hiding(test, noise, seed, denoiser)
        return {
            "examiner_accuracy": examiner.accuracy(test, noise, seed, denoiser),
            "examiner_accuracy_as_released": examiner.accuracy(test, noise, seed, None),
            "examiner_accuracy_plain": examiner.plain_accuracy(test),
            "psnr_denoised": after["psnr"],
            "ssim_denoised": after["ssim"],
            "denoiser_width": denoiser.width,
            "denoiser_weighted": float(denoiser.weighted),
        }

    def examiner(self) -> Examiner:
        """Return the examiner, trained when it is first needed."""
        if self._examiner is None:
            config = self.settings.examiner
            if config is None:
                raise RuntimeError("this experiment has no examiner")
            with self.recorder.timed("examiner"):
                self._examiner = Examiner(
                    config, self.data, self.experiment.seed, self.compute, self.recorder
                )
        return self._examiner

    # --------------------------------------------------------------------- publication

    def publish(self, case: str, settings: ThemisConfig, generator: NoiseGenerator) -> None:
        """Write one case's leaderboard, rank agreement, Eq. (1) and artefacts."""
        if self.recorder.finished(f"published/{case}"):
            return
        official = self.settings.release_bounds[0]
        names = list(self._of_case(case))
        trained = self._accuracies("trained", case, official, names)
        plain = untrained = None
        if self.settings.release.compare:
            plain = {n: a[0] for n, a in self._accuracies("plain", SHARED, 0.0, names).items()}
            untrained = self._accuracies("untrained", SHARED, official, names)
        board = leaderboard(trained, plain, untrained)
        board.to_csv(self.recorder.artefact(f"{case}/leaderboard.csv"), index=False)
        for row in board.itertuples():
            self.recorder.log("leaderboard", "rank", row.rank, node=row.model, case=case)  # type: ignore[arg-type]
        if plain is not None and untrained is not None:
            self._compare(case, plain, trained, untrained, generator)
        self._artefacts(case, generator)
        self.recorder.finish(f"published/{case}")

    def _accuracies(
        self, release: str, case: str, bound: float, names: list[str]
    ) -> dict[str, list[float]]:
        wanted = {"stage": "evaluation", "release": release, "case": case, "M": bound}
        rows = [r for r in self.recorder.rows if all(r.get(k) == v for k, v in wanted.items())]
        return {name: [r["value"] for r in rows if r["node"] == name] for name in names}

    def _compare(
        self,
        case: str,
        plain: dict[str, float],
        trained: dict[str, list[float]],
        untrained: dict[str, list[float]],
        generator: NoiseGenerator,
    ) -> None:
        for release, draws in (("trained", trained), ("untrained", untrained)):
            means = {name: float(np.mean(values)) for name, values in draws.items()}
            for metric, value in agreement(plain, means).items():
                self.recorder.log("leaderboard", metric, value, case=case, release=release)
        densities: dict[str, Gaussian] = {}
        for name in plain:
            both = {
                r["metric"]: r["value"]
                for r in self.recorder.rows
                if r["stage"] == "density" and r["node"] == name
            }
            densities[name] = (both.get("mean", np.nan), both.get("variance", -1.0))
        noise = NoiseGenerator(
            torch.from_numpy(generator.packed()), self.settings.release_bounds[0]
        )
        table = rank_condition(plain, trained, densities, self._data_gaussian(), gaussian_of(noise))
        table.to_csv(self.recorder.artefact(f"{case}/rank_condition.csv"), index=False)

    def _data_gaussian(self) -> Gaussian:
        """Return mean and variance over all elements of (up to 2,000) public images."""
        images = self.data.train
        x = images.batch(np.arange(min(len(images), 2000)))[0].double()
        return float(x.mean()), float(x.var(correction=0))

    def _artefacts(self, case: str, generator: NoiseGenerator) -> None:
        """Keep generator and sample images for the plots."""
        untrained = self.untrained(generator.bound)
        np.savez_compressed(
            self.recorder.artefact(f"{case}/generator.npz"),
            trained=generator.packed(),
            untrained=untrained.packed(),
            M=generator.bound,
            release_M=self.settings.release_bounds,
        )
        samples = self.data.test.subset(np.arange(min(SAMPLES, len(self.data.test))))
        shown: dict[str, np.ndarray] = {}
        for bound in self.settings.release_bounds:
            for release, source, owner in (
                ("untrained", untrained, SHARED),
                ("trained", generator, case),
            ):
                noise = NoiseGenerator(torch.from_numpy(source.packed()), bound)
                seed = self._seed(release, owner, bound, 0)
                x, noisy, _ = next(noisy_chunks(samples, noise, seed))
                shown["plain"] = samples.denormalise(x).numpy()
                shown[f"{release} M={bound:g}"] = samples.denormalise(noisy).numpy()
        np.savez_compressed(self.recorder.artefact(f"{case}/samples.npz"), **shown)


def gaussian_of(noise: NoiseGenerator) -> Gaussian:
    """Return mean and variance of the noise over all elements."""
    with torch.no_grad():
        mean = float(noise.mu.mean())
        variance = noise.sigma().square().mean() + noise.mu.var(correction=0)
        return mean, float(variance)


__all__ = ["Competition", "Denoiser", "Splits", "compete"]
