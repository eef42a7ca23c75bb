"""Sections on scoring, prediction, devices and logging: nothing here changes what is learnt."""

from typing import Annotated, Literal

from pydantic import Field

from emseg_jax.config.base import Positive, Section, Size
from emseg_jax.config.reading import Reading

__all__ = ['Eval', 'Mesh', 'Predict', 'Run']

Metric = Literal['soft', 'thresholds', 'boundary', 'border', 'rand', 'isbi2012', 'instances']


class Eval(Section):
  """Scoring on whole images."""

  best: str = Field(
    'miou', description='validation score that picks the best checkpoint, such as iou/CLASS'
  )
  metrics: tuple[Metric, ...] = Field(
    (), description='scores beside those of the confusion matrix; see emseg_jax/metrics'
  )
  confidence: Annotated[float, Field(gt=0, lt=1)] = Field(
    0.95, description='level of the bootstrap intervals over images'
  )
  checkpoint: Literal['best', 'latest'] = Field(
    'best', description='which checkpoint evaluate and predict use'
  )
  split: Literal['validation', 'test', 'train'] = Field(
    'validation', description='which sources --mode=evaluate scores'
  )


class Predict(Section):
  """Tiles fed to the network at evaluation and prediction, and what is written."""

  reading: Reading = Field(Reading(), description='what the files of --input do not say')
  tile: Size | None = Field(
    None, description='tile size (y, x) or (z, y, x); None: twice a 2D patch, or a 3D patch'
  )
  overlap: Annotated[float, Field(ge=0, le=0.75)] = Field(
    0.25, description='share of a tile that neighbours overlap'
  )
  blend: Literal['gaussian', 'uniform', 'exact'] = Field(
    'gaussian',
    description='weights in overlaps; exact: only voxels that see no edge of a tile count, for '
    'networks of a limited field of view',
  )
  augment: tuple[Literal['flips', 'rotations', 'views'], ...] = Field(
    (), description='average over mirrored and turned copies; views: along all axes of a volume'
  )
  ensemble: tuple[str, ...] = Field(
    (), description='work directories of further runs, such as other folds, to average with'
  )
  batch_size: Positive | None = Field(
    None,
    description='tiles per device call; None: what fits into half of the memory, at most 16 per '
    'device; on CPUs 4 in all',
  )
  probabilities: Literal['uint8', 'uint16'] | None = Field(
    None, description='also write one probability map per class, scaled to this type'
  )
  params: Literal['float32', 'bf16', 'int8'] = Field(
    'float32',
    description='which parameters of an exported model to use; the others are there if --forms of '
    'export named them',
  )
  block: Size | None = Field(
    None, description='what of a volume is computed and written at once, voxels; None: chosen'
  )
  zarr_format: Literal[2, 3] | None = Field(
    None,
    description='of output in Zarr: 2 (OME-Zarr 0.4) or 3 (0.5, sharded); None: that of the input, '
    '2 if it is of another format',
  )
  roi: str | None = Field(
    None, description='box of a volume to predict, z0:z1,y0:y1,x0:x1; the output is as large as it'
  )
  mask: str | None = Field(
    None, description='volume of the size of the input; where it is 0, nothing is predicted'
  )


class Mesh(Section):
  """How devices share the work: batch over `data`, first spatial axis over `space`."""

  data: Annotated[int, Field(ge=-1)] = Field(-1, description='-1: all devices left by space')
  space: Positive = Field(1, description='devices that share one image')
  shard_state: bool = Field(
    False,
    description='split parameters and the state of the optimiser over `data`, too: less memory on '
    'each device, more to send in each step',
  )


class Run(Section):
  """Logging, caches, report: nothing here changes what is learnt."""

  tensorboard: bool = Field(True, description='write TensorBoard event files')
  published: dict[str, float] = Field(
    {}, description="a paper's scores for this very experiment, by the names of eval.best"
  )
  protocol: str = Field('', description='how training and scoring differ from the paper, if so')
  report: bool = Field(True, description='write report.html when training ends')
  report_cases: Positive = Field(4, description='worst and best images shown in the report')
  compile_cache: str | None = Field(
    '~/.cache/emseg_jax/xla', description='folder of compiled programs; None: off'
  )
  target_cache: str | None = Field(
    '~/.cache/emseg_jax/targets', description='folder of computed targets; None: off'
  )
  lost_after: Annotated[int, Field(ge=5)] = Field(
    30, description='of several processes: seconds of silence after which one counts as lost'
  )
  deterministic: bool = Field(False, description='bit-reproducible GPU runs, slower; CPUs are')
