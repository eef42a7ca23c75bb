"""Parameters in fewer bits as forms of a bundle, with what they cost in mIoU."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from emseg_jax import evaluation, experiment, sharding
from emseg_jax.bundle import Bundle, reduced
from emseg_jax.data import pairs
from emseg_jax.errors import EmsegError
from emseg_jax.predict import Predictor
from emseg_jax.pretrained import own
from emseg_jax.train_state import TrainState

__all__ = ['Scorer', 'write']

LOGGER = logging.getLogger(__name__)


def write(folder: Path, bundle: Bundle, *, kind: str, scorer: 'Scorer | None') -> dict[str, Any]:
  """Writes the form `kind` into the folder of a bundle; see `bundle.Form`.

  Args:
    folder, bundle: see there.
    kind: of `bundle.reduced.KINDS`.
    scorer: measures the loss; None: nothing is measured.
  """
  stored = reduced.reduce(own.flat(bundle.variables), kind)
  config = bundle.config
  about = own.About(config.data.input_channels, config.task.num_logits, config.data.normalisation)
  content = own.pack(stored, about)
  name = reduced.file_name(kind)
  (folder / name).write_bytes(content)
  loss = None
  if scorer is not None:
    loss = scorer.loss(bundle, own.nested(reduced.expand(stored, kind)))
  full = sum(array.nbytes for array in own.flat(bundle.variables).values())
  said = 'loss not measured'
  if loss is not None:
    said = 'mIoU {1} instead of {2} on {0}'.format(loss['split'], *map(_shown, loss['miou']))
  return {
    'file': name,
    'sha256': hashlib.sha256(content).hexdigest(),
    'bytes': len(content),
    'sizes': f'{len(content):,} bytes, float32 has {full:,}; {said}.',
    'loss': loss,
  }


def _shown(score: float | None) -> str:
  return '-' if score is None else f'{score:.4f}'


class Scorer:
  """Scores parameters on the labelled images of the training run, those in float32 once."""

  def __init__(self) -> None:
    self._full: dict[str, Any] | None = None
    self._split: pairs.Split | None = None

  def loss(self, bundle: Bundle, variables: Mapping[str, Any]) -> dict[str, Any] | None:
    """What other parameters cost: 'split', 'images', and 'miou' and 'iou' by class, each as (of
    these parameters, of float32); None if there are no labelled images, or not any more.

    Args:
      bundle: the network and its float32 parameters.
      variables: the other ones.
    """
    config = bundle.config
    name = next((s for s in ('test', 'validation') if getattr(config.data, s)), None)
    if name is None:
      LOGGER.warning('The loss is not measured: the run has no test or validation images.')
      return None
    try:
      if self._full is None:
        self._split = pairs.open_split(
          getattr(config.data, name), task=config.task, data=config.data
        )
        self._full = self._scores(bundle, bundle.variables)
      found = self._scores(bundle, variables)
    except EmsegError as error:
      LOGGER.warning('The loss is not measured: %s', error)
      return None
    pair = (found, self._full)
    return {
      'split': name,
      'images': len(self._split),
      'miou': [scores['miou'] for scores in pair],
      'iou': {c: [s['per_class'][c]['iou'] for s in pair] for c in found['per_class']},
    }

  def _scores(self, bundle: Bundle, variables: Mapping[str, Any]) -> dict[str, Any]:
    setup = experiment.set_up(bundle.config)
    placed = jax.device_put(
      {'params': {}, 'batch_stats': {}} | dict(variables), sharding.replicated(setup.mesh)
    )
    predictor = Predictor(setup, bundle.normalisation)
    predictor.load(TrainState(step=0, opt_state=(), **placed))
    return evaluation.evaluate_split(predictor, self._split, baselines=False, details=False).scores
