"""What an evaluation means for the run, step by step by hand.

The rules are those of Keras' ReduceLROnPlateau and EarlyStopping with min_delta=0 and cooldown=0:
one counter each, back to 0 at an improvement; the first one also at a cut.
"""

import dataclasses
import math

import pytest

from emseg_jax import verdict
from emseg_jax.checkpoint import Meta
from emseg_jax.config import Config, Eval, Optim, Train

START = Meta(
  step=0,
  evaluated_step=-1,
  best_step=-1,
  best_score=verdict.NO_SCORE,
  normalisation={},
  data='',
  config={},
  versions={},
)


def _config(*, best='miou', patience=2, factor=0.5, stop=None) -> Config:
  return Config(
    eval=Eval(best=best),
    optim=Optim(plateau_factor=factor, plateau_patience=patience),
    train=Train(early_stop=stop),
  )


def _judge_all(scores, config: Config) -> list[verdict.Verdict]:
  """Evaluations at steps 10, 20, ..."""
  meta, found = START, []
  for number, score in enumerate(scores, start=1):
    found.append(verdict.judge(dataclasses.replace(meta, step=10 * number), score, config))
    meta = found[-1].meta
  return found


def test_the_first_score_is_the_best_however_low():
  (found,) = _judge_all([0.0], _config())
  assert found.improved
  assert not found.reduce_rate
  assert (found.meta.best_step, found.meta.best_score) == (10, 0.0)
  assert found.meta.evaluated_step == 10
  assert (found.meta.since_best, found.meta.since_cut, found.meta.finished) == (0, 0, False)


def test_only_a_higher_score_improves_and_the_best_one_is_remembered():
  found = _judge_all([0.3, 0.5, 0.5, 0.4, 0.6], _config(patience=9))
  assert [f.improved for f in found] == [True, True, False, False, True]
  assert [f.meta.best_step for f in found] == [10, 20, 20, 20, 50]
  assert [f.meta.best_score for f in found] == [0.3, 0.5, 0.5, 0.5, 0.6]
  assert [f.meta.evaluated_step for f in found] == [10, 20, 30, 40, 50]


@pytest.mark.parametrize('best', ['soft/cross_entropy', 'rand/error', 'rand/vi/square'])
def test_of_an_error_only_a_lower_one_improves(best):
  found = _judge_all([0.7, 0.9, 0.7, 0.6], _config(best=best, patience=9))
  assert [f.improved for f in found] == [True, False, False, True]
  assert [f.meta.best_score for f in found] == [0.7, 0.7, 0.7, 0.6]


def test_the_rate_is_cut_again_after_every_patience_of_evaluations():
  # Best at 1; waits of 2 end at evaluations 3 and 5; 6 improves, so the next wait ends at 8.
  found = _judge_all([0.5, 0.4, 0.4, 0.4, 0.4, 0.6, 0.6, 0.6], _config(patience=2))
  cuts = [False, False, True, False, True, False, False, True]
  assert [f.reduce_rate for f in found] == cuts
  assert [f.meta.since_cut for f in found] == [0, 1, 0, 1, 0, 0, 1, 0]
  assert [f.meta.since_best for f in found] == [0, 1, 2, 3, 4, 0, 1, 2]  # a cut leaves it alone


def test_without_a_factor_the_rate_is_never_cut():
  found = _judge_all([0.5, 0.4, 0.4, 0.4], _config(patience=1, factor=None))
  assert not any(f.reduce_rate for f in found)


def test_the_run_ends_after_so_many_evaluations_since_the_best():
  # One improvement in between starts the count afresh.
  found = _judge_all([0.5, 0.4, 0.4, 0.6, 0.6, 0.5, 0.4], _config(factor=None, stop=3))
  assert [f.meta.finished for f in found] == [False] * 6 + [True]
  assert found[-1].meta.best_step == 40


def test_cuts_do_not_put_off_the_end():
  found = _judge_all([0.5, 0.4, 0.4, 0.4], _config(patience=1, stop=3))
  assert [f.reduce_rate for f in found] == [False, True, True, True]
  assert [f.meta.finished for f in found] == [False, False, False, True]


@pytest.mark.parametrize('nothing', [None, math.nan])
@pytest.mark.parametrize('best', ['miou', 'soft/cross_entropy'])
def test_no_score_is_no_improvement_and_never_the_best(nothing, best):
  first, second, third, fourth = _judge_all(
    [nothing, 0.2, nothing, nothing], _config(best=best, patience=2)
  )
  assert not first.improved
  assert (first.meta.best_step, first.meta.best_score) == (-1, verdict.NO_SCORE)
  assert (first.meta.evaluated_step, first.meta.since_best, first.meta.since_cut) == (10, 1, 1)
  assert second.improved
  assert (second.meta.best_step, second.meta.best_score) == (20, 0.2)
  assert (third.meta.best_score, third.meta.since_best) == (0.2, 1)
  assert fourth.reduce_rate


def test_a_run_without_any_score_ends_too():
  found = _judge_all([None, None], _config(factor=None, stop=2))
  assert [f.meta.finished for f in found] == [False, True]


def test_the_record_it_is_given_stays_as_it_is():
  meta = dataclasses.replace(START, step=10)
  verdict.judge(meta, 0.5, _config())
  assert meta == dataclasses.replace(START, step=10)
