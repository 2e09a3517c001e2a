"""The attacks there are: ours, and those that other packages bring.

Another package adds one without a change to ours: it derives a class from :class:`.Attack` and
names an object of it as an entry point of the group ``pudica.attacks``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from logging import WARN

from flwr.common.logger import log

from pudica.analysis.attacks.attribute_inference import AttributeInference, IdentityInference
from pudica.analysis.attacks.base import GOALS, Attack
from pudica.analysis.attacks.divisors import CommonDivisors
from pudica.analysis.attacks.gradient_inversion import GradientInversion
from pudica.analysis.attacks.inversion import LearnedInversion
from pudica.analysis.attacks.known_pairs import KnownPairs
from pudica.analysis.attacks.label_inference import ClassInference
from pudica.analysis.attacks.labels import LabelInference
from pudica.analysis.attacks.matching import CandidateMatching
from pudica.analysis.attacks.membership import MembershipInference
from pudica.analysis.attacks.moments import Moments
from pudica.analysis.attacks.neighbours import NeighbourAudit
from pudica.analysis.attacks.reconstruction import ImageReconstruction
from pudica.analysis.attacks.separation import Separation
from pudica.analysis.attacks.steering import Hijacking
from pudica.analysis.attacks.total_variation import TotalVariationInversion
from pudica.models.plugins import load_plugins

GROUP = "pudica.attacks"
OURS: tuple[Attack, ...] = (
    AttributeInference(),
    IdentityInference(),
    Separation(),
    ImageReconstruction(),
    LearnedInversion(),
    CandidateMatching(),
    TotalVariationInversion(),
    LabelInference(),
    MembershipInference(),
    Moments(),
    CommonDivisors(),
    KnownPairs(),
    GradientInversion(),
    ClassInference(),
    Hijacking(),
    NeighbourAudit(),
)


@cache
def attacks() -> Mapping[str, Attack]:
    """Return all attacks by their kind, ours first.

    What a package brings that can't be loaded, is no Attack, or has a name that is taken is logged
    and left out: the others work without.
    """
    known = {attack.kind: attack for attack in OURS}
    found = load_plugins(GROUP, Attack, known, _name)  # type: ignore[type-abstract]
    for remark in found:
        log(WARN, "%s", remark)
    return known


def _name(attack: Attack) -> str:
    """Return an attack's kind; ValueError if it says not what it is after."""
    if attack.goal not in GOALS:
        raise ValueError(f"its goal is '{attack.goal}'; allowed: {', '.join(GOALS)}")
    return attack.kind
