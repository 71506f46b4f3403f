"""What cannot be built is refused before an actor is started."""

import pytest
import torch

from learning.build import Program
from learning.checks import check_program
from learning.errors import UserError
from learning.objectives.heads import HeadSettings
from learning.objectives.readout import LatentSettings
from learning.rules import BLL, Backprop, Local, Rule
from tests.learning.helpers import learner_settings

SHAPES = ((8, 4, 4), (6, 2, 2), (3,))


def checked(rule: Rule, **settings) -> None:
    learner = learner_settings(**settings)
    sample = torch.zeros(learner.batch // learner.shards, 4)
    check_program(Program(rule, learner, SHAPES, 3), [(), (), ()], sample)


@pytest.mark.parametrize(
    "rule", [Backprop(), Local(), Local(head=HeadSettings(kind="conv")), BLL()]
)
def test_possible_programs(rule):
    checked(rule, batch=8)


def test_batch_normalisation_of_one_sample_is_refused():
    with pytest.raises(UserError, match="block 1 cannot work on 1 samples .* training.shards"):
        checked(BLL(), batch=8, shards=8)
    checked(BLL(latent=LatentSettings(normalization="none")), batch=8, shards=8)
