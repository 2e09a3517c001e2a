"""A system of one's own: how many images are of a class, asked by randomised response."""

from pathlib import Path

from pudica.clients.runtime.systems import System

SYSTEM = System(
    name="poll",
    experiment="pudica_poll.server:PollExperiment",
    run="pudica_poll.server:run",
    assignment="pudica_poll.client:PollAssignment",
    role="pudica_poll.client:Respondent",
    roles="pudica_poll.client:ROLES",
    tables="pudica_poll.results:tables",
    figures="pudica_poll.results:figures",
    experiments=Path(__file__).parent,
)
