"""Split learning from joining to the last measurement, case after case."""

from __future__ import annotations

from torch import nn

from pudica.clients import shields
from pudica.clients.shields.front import Front, activation_shape
from pudica.models.cut import Cutter, count_flops
from pudica.models.files import save_tensors
from pudica.models.packing import select_prefix
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.releases import keep
from pudica.strategies.core.session import run_cases
from pudica.strategies.split.config import PRETRAINED, SplitConfig
from pudica.strategies.split.devices import EdgeMember
from pudica.strategies.split.evaluation import NOISY, PLAIN, CloudClassification, measure
from pudica.strategies.split.experiment import SplitExperiment
from pudica.strategies.split.ledger import releases
from pudica.strategies.split.model import build_model, start_from
from pudica.strategies.split.pretraining import load_pretrained, pretrain
from pudica.strategies.split.session import Session
from pudica.strategies.split.strategy import SplitLearning
from pudica.strategies.split.turns import NEVER_BACK


def learn(cohort: Cohort, experiment: SplitExperiment) -> None:
    """Run all cases: join, train across the cut, evaluate."""

    def run_case(case: str, settings: SplitConfig) -> None:
        Case(Session(cohort, experiment, case, settings)).run()

    pretrain(experiment, cohort.run_recorder)
    cases, minimum = experiment.split.each_case(), experiment.split.min_devices
    run_cases(cohort, experiment, minimum, cases, run_case)


class Case:
    """One case, from joining to its model's file.

    Parameters
    ----------
    session : Session
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.settings: SplitConfig = session.settings
        self.recorder = session.recorder

    def run(self) -> None:
        """Train and evaluate, from wherever a run that was stopped had got to."""
        case = self.session.case
        with self.recorder.timed(f"join/{case}"):
            self.prepare()
        kinds = releases(self.session, self.strategy.fronts, self.strategy.activation)
        keep(self.recorder, kinds)
        with self.recorder.timed(f"training/{case}"):
            self._train()
        with self.recorder.timed(f"evaluation/{case}"):
            self._evaluate()
        macs = count_flops(self.layers, self.session.image) / 2
        self.session.log("costs", "edge_macs", macs)
        parameters = sum(parameter.numel() for parameter in self.layers.parameters())
        self.session.log("costs", "edge_parameters", parameters)
        self._keep_model()
        self.recorder.forget(self.strategy.task)

    def prepare(self) -> SplitLearning:
        """Let the devices join, build and cut the model; return what trains it."""
        session, settings = self.session, self.settings
        session.join(self._start_turn)
        front, back = self._build()
        self.strategy = SplitLearning.of_experiment(
            settings, session.experiment.seed, front, back, session.compute
        )
        members = {
            name: EdgeMember.of(member, front.shield.grid, not session.fresh)
            for name, member in session.members.items()
        }
        self.strategy.activation = tuple(front.shield.shape)
        self.strategy.attach(session.cohort, members, session.case)
        return self.strategy

    def _build(self) -> tuple[Front, nn.Module]:
        """Build the model, cut it, and put the shield behind the front."""
        session, settings = self.session, self.settings
        model = build_model(settings, session.classes, session.image, session.experiment.seed)
        if settings.weights == PRETRAINED:
            start_from(model, load_pretrained(self.recorder, settings), PRETRAINED)
        layers, back = Cutter(model).cut(settings.cut)
        self.layers = layers
        shape = activation_shape(layers, session.image)
        return Front(layers, shields.build(session.shield, shape, settings.batch_size)), back

    def _start_turn(self, name: str) -> int:
        """Return the turn to which a device of a resumed run goes back, -1 if it begins."""
        recorder, task = self.recorder, self.session.task("training")
        if self.settings.release == "once":
            told = recorder.is_finished(f"released/{self.session.case}/{name}")
            return NEVER_BACK if told or recorder.is_finished(task) else -1
        if recorder.is_finished(task):
            return int(recorder.result(task)["turn"])
        return int(recorder.position(task).get("turn", -1))

    def _train(self) -> None:
        strategy, task = self.strategy, self.strategy.task
        if self.recorder.is_finished(task):
            kept = select_prefix(f"{task}/", self.recorder.arrays)
            strategy.cloud.restore(kept)
            strategy.fronts.restore(kept, self.recorder.result(task)["fronts"])
            return
        grid = self.session.cohort.grid
        strategy.start(grid, num_rounds=self.settings.epochs, timeout=float("inf"))
        strategy.save_checkpoint()
        self.recorder.finish(task, turn=strategy.last_turn, fronts=strategy.fronts.note())

    def _evaluate(self) -> None:
        """Measure on the test images, in both ways that the settings ask for."""
        strategy, epochs = self.strategy, self.settings.epochs
        self.session.cohort.reset_failures()
        # Who was away all the time begins with the front that everybody began with.
        strategy.fronts.flush(self.recorder.result(strategy.task)["turn"])
        if "edge" in self.settings.classifiers:
            measure(strategy, "test", epochs)
        if "cloud" in self.settings.classifiers:
            for release in [NOISY, PLAIN] if self.settings.plain_to_cloud else [NOISY]:
                CloudClassification(strategy, release).measure(epochs)

    def _keep_model(self) -> None:
        """Put the trained model into a file, as far as the cloud has it."""
        front, back = self.strategy.front, self.strategy.back
        tensors = dict(back.state_dict())
        if self.settings.front != "private":
            assert isinstance(front, Front)
            tensors |= front.layers.state_dict()
        path = self.recorder.artefact(f"{self.session.case}/model.safetensors")
        save_tensors(path, tensors, {})
