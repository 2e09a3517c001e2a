"""Split learning from joining to the last measurement, case after case."""

from __future__ import annotations

from pudica.clients import shields
from pudica.clients.shields.front import Front, activation_shape
from pudica.models.cut import Cutter
from pudica.models.files import save_tensors
from pudica.models.packing import select_prefix
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.joining import gather
from pudica.strategies.core.releases import keep
from pudica.strategies.split.cloud import Cloud
from pudica.strategies.split.config import PRETRAINED, SplitConfig
from pudica.strategies.split.evaluation import NOISY, PLAIN, CloudClassification, measure_whole
from pudica.strategies.split.experiment import SplitExperiment
from pudica.strategies.split.fronts import MODES, Fronts
from pudica.strategies.split.ledger import releases
from pudica.strategies.split.model import built, start_from
from pudica.strategies.split.once import Once
from pudica.strategies.split.pretraining import pretrain, pretrained
from pudica.strategies.split.session import Session
from pudica.strategies.split.training import Training, start_turn


def learn(cohort: Cohort, experiment: SplitExperiment) -> None:
    """Run all cases: join, train across the cut, evaluate."""
    recorder = cohort.run_recorder
    pretrain(experiment, recorder)
    with recorder.timed("join"):
        nodes = gather(cohort, experiment.names(), experiment.split.min_devices)
    for case, settings in experiment.split.each_case().items():
        if not recorder.is_finished(f"case/{case}"):
            cohort.nodes = dict(nodes)
            Case(Session(cohort, experiment, case, settings)).run()


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
        keep(self.recorder, releases(self.session, self.fronts, self.shape))
        with self.recorder.timed(f"training/{case}"):
            self._train()
        with self.recorder.timed(f"evaluation/{case}"):
            self._evaluate()
        self._keep_model()
        self.recorder.forget(self.session.task("training"))
        self.recorder.finish(f"case/{case}")

    def prepare(self) -> Training | Once:
        """Let the devices join, build and cut the model; return what trains it."""
        self.session.join(lambda name: start_turn(self.session, name))
        self._build()
        how = Once if self.settings.release == "once" else Training
        self.training = how(self.session, self.cloud, self.fronts, self.shape)
        return self.training

    def _build(self) -> None:
        """Build the model, cut it, and put the shield behind the front."""
        session, settings = self.session, self.settings
        model = built(settings, session.classes, session.image, session.experiment.seed)
        if settings.weights == PRETRAINED:
            start_from(model, pretrained(self.recorder, settings), PRETRAINED)
        layers, back = Cutter(model).cut(settings.cut)
        self.shape = activation_shape(layers, session.image)
        front = Front(layers, shields.build(session.shield, self.shape, settings.batch_size))
        # Where nothing of the front can learn, no gradient goes back.
        learns = settings.front != "frozen" and any(True for _ in front.parameters())
        self.fronts: Fronts = MODES[settings.front if learns else "frozen"](session, front)
        self.cloud = Cloud(back, settings, session.compute, session.seed, learns)

    def _train(self) -> None:
        task = self.session.task("training")
        if self.recorder.is_finished(task):
            kept = select_prefix(f"{task}/", self.recorder.arrays)
            self.cloud.restore(kept)
            self.fronts.restore(kept, self.recorder.result(task)["fronts"])
            return
        self.training.train()

    def _evaluate(self) -> None:
        """Measure on the test images, in both ways that the settings ask for."""
        session, cloud, epochs = self.session, self.cloud, self.settings.epochs
        session.cohort.reset_failures()
        # Who was away all the time begins with the front that everybody began with.
        self.fronts.settle(self.recorder.result(session.task("training")).get("turn", 0))
        shared = self.fronts.shared()
        if "edge" in self.settings.classifiers:
            measure_whole(session, cloud, shared, "test", epochs)
        if "cloud" in self.settings.classifiers:
            releases = [NOISY, PLAIN] if self.settings.plain_to_cloud else [NOISY]
            for release in releases:
                grid = self.fronts.front.shield.grid if release == NOISY else None
                how = CloudClassification(session, cloud, self.shape, release, grid)
                how.measure(shared, epochs)

    def _keep_model(self) -> None:
        """Put the trained model into a file, as far as the cloud has it."""
        tensors = dict(self.cloud.back.state_dict())
        if self.settings.front != "private":
            tensors |= self.fronts.front.layers.state_dict()
        path = self.recorder.artefact(f"{self.session.case}/model.safetensors")
        save_tensors(path, tensors, {})
