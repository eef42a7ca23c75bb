"""Every option outside the networks: its type, default, unit and range.

Defaults of a network live in its module's fields (`model.options` overrides them); all other
defaults live here. Sections are frozen and refuse unknown fields. Spatial tuples are (y, x) or
(z, y, x), in voxels. `config_io` reads, overrides and writes configurations.
"""

from typing import Self

import pydantic

from emseg_jax.config import affinities
from emseg_jax.config.augment import Augment, Defects
from emseg_jax.config.base import Section, parse_arg, pick
from emseg_jax.config.data import Data, Labels, Phantom, Proximity, Sampling, Source
from emseg_jax.config.learning import Loss, LossTerm, Model, Optim, Train, Weighting
from emseg_jax.config.postprocess import Postprocess
from emseg_jax.config.reading import Reading
from emseg_jax.config.running import Eval, Mesh, Predict, Run
from emseg_jax.config.task import Task

__all__ = [
  'Augment',
  'Config',
  'Data',
  'Defects',
  'Eval',
  'Labels',
  'Loss',
  'LossTerm',
  'Mesh',
  'Model',
  'Optim',
  'Phantom',
  'Postprocess',
  'Predict',
  'Proximity',
  'Reading',
  'Run',
  'Sampling',
  'Section',
  'Source',
  'Task',
  'Train',
  'Weighting',
  'parse_arg',
  'pick',
]


class Config(Section):
  """One experiment."""

  task: Task = Task()
  data: Data = Data()
  augment: Augment = Augment()
  model: Model = Model()
  loss: Loss = Loss()
  optim: Optim = Optim()
  train: Train = Train()
  eval: Eval = Eval()
  predict: Predict = Predict()
  postprocess: Postprocess = Postprocess()
  mesh: Mesh = Mesh()
  run: Run = Run()

  @pydantic.model_validator(mode='after')
  def _check(self) -> Self:
    mapping = self.data.label_mapping or {}
    count = len(self.task.values)
    allowed = f'task.classes has {"masks" if self.task.multilabel else "indices"} 0 to {count - 1}'
    beyond = {k: v for k, v in mapping.items() if v >= count}
    if beyond:
      raise ValueError(f'data.label_mapping maps to {sorted(set(beyond.values()))}, but {allowed}')
    other = self.data.labels.other
    if other is not None and other >= count:
      raise ValueError(f'data.labels.other is {other}, but {allowed}')
    if self.task.multilabel and self.eval.metrics:
      raise ValueError(
        f'eval.metrics={list(self.eval.metrics)} take one class per voxel; task.activation='
        'multilabel needs an empty list'
      )
    if self.task.affinities:
      affinities.check(self.task, self.data, self.eval, self.predict, self.postprocess)
    if self.task.ignore_value in mapping:
      raise ValueError(f'task.ignore_value={self.task.ignore_value} is in data.label_mapping, too')
    if self.augment.rotate90 and self.data.patch[-2] != self.data.patch[-1]:
      raise ValueError(
        f'augment.rotate90 needs a square data.patch, got {self.data.patch}; set '
        'augment.rotate90=false or a square patch'
      )
    return self
