"""What an evaluation means for the run: a new best, a lower learning rate, or the end.

Pure bookkeeping on the checkpoint's record, so that a restarted run decides the same.
"""

import dataclasses
import math
from collections.abc import Mapping

from emseg_jax import config as config_lib
from emseg_jax import metrics
from emseg_jax.checkpoint import Meta

__all__ = ['NO_SCORE', 'Verdict', 'judge']

NO_SCORE = -math.inf  # what `Meta.best_score` holds before the first evaluation


@dataclasses.dataclass(frozen=True)
class Verdict:
  """Attributes:
  meta: the record with this evaluation in it; `finished` if the run should end.
  improved: the score is the best so far.
  reduce_rate: the learning rate is to be multiplied by optim.plateau_factor.
  """

  meta: Meta
  improved: bool
  reduce_rate: bool

  def describe(self, scores: Mapping[str, float | None], *, best: str, seconds: float) -> str:
    """One line: mIoU, accuracy and the score `best`, and what follows from them."""
    shown = {n: scores.get(n) for n in dict.fromkeys(('miou', 'accuracy', best))}
    return (
      f'step {self.meta.step}: validation '
      + ', '.join(f'{n} {"-" if v is None else format(v, ".4f")}' for n, v in shown.items())
      + f' ({seconds:.1f} s)'
      + (', the best so far' if self.improved else '')
      + (', learning rate reduced' if self.reduce_rate else '')
      + (', no improvement: the end' if self.meta.finished else '')
    )


def judge(meta: Meta, score: float | None, config: config_lib.Config) -> Verdict:
  """Judges the evaluation of step `meta.step`.

  Keras' rules: an evaluation without improvement counts one; optim.plateau_patience of them since
  the best or the last cut reduce the rate, train.early_stop of them since the best end the run.

  Args:
    meta: the record so far.
    score: of eval.best; None (a class neither labelled nor predicted) and NaN are no improvement.
    config: eval.best, train.early_stop and the plateau options are used.
  """
  improved = (
    score is not None
    and math.isfinite(score)
    and (meta.best_step < 0 or _better(score, meta.best_score, config.eval.best))
  )
  if improved:
    meta = dataclasses.replace(
      meta, best_step=meta.step, best_score=score, since_best=0, since_cut=0
    )
  else:
    meta = dataclasses.replace(meta, since_best=meta.since_best + 1, since_cut=meta.since_cut + 1)
  optim = config.optim
  reduce_rate = optim.plateau_factor is not None and meta.since_cut >= optim.plateau_patience
  if reduce_rate:
    meta = dataclasses.replace(meta, since_cut=0)
  stop = config.train.early_stop
  finished = stop is not None and meta.since_best >= stop
  meta = dataclasses.replace(meta, evaluated_step=meta.step, finished=finished)
  return Verdict(meta, improved, reduce_rate)


def _better(score: float, best: float, name: str) -> bool:
  return score < best if metrics.lower_is_better(name) else score > best
