"""What model.json says of a network, collected from its configuration and checkpoint."""

import datetime
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from emseg_jax import colours as colours_lib
from emseg_jax import config as config_lib
from emseg_jax import experiment
from emseg_jax.bundle import schema
from emseg_jax.checkpoint import Meta
from emseg_jax.data import normalise
from emseg_jax.export import inference
from emseg_jax.predict import file_values
from emseg_jax.train_state import parameter_count

__all__ = ['describe']

_FORMULAS = {
  'per_volume': '(pixel - mean) / std, of all pixels of the image or volume',
  'percentile': 'clip((pixel - p1) / (p99 - p1), 0, 1), p1 and p99 the 1 % and 99 % percentiles of '
  'the image or volume',
}


def describe(
  config: config_lib.Config,
  meta: Meta,
  variables: Mapping[str, Any],
  *,
  channels: int,
  sample: str,
  title: str,
  licence: str | None = None,
  scores: Mapping[str, dict[str, Any]] = {},
) -> schema.Record:
  """The record of a network; the parts about files are filled in when they are written.

  Args:
    config, meta: of its checkpoint.
    variables: its 'params' and 'batch_stats'.
    channels: of the images that exported functions take.
    sample: where the sample's input is from.
    title, licence, scores: as in `schema.Record`.
  """
  model = experiment.make_model(config, dtype=jnp.dtype('float32'))
  names, values = config.task.values, file_values(config).tolist()
  colours = colours_lib.class_colours(config.task.colours, len(names))
  return schema.Record(
    schema_version=schema.SCHEMA_VERSION,
    title=title,
    created=datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    licence=licence,
    network=schema.Network(
      name=config.model.name,
      options=config.model.options,
      outputs=config.task.num_logits,
      parameters=parameter_count(variables['params']),
      divisor=model.divisor,
      receptive_field=model.receptive_field,
    ),
    input=_input(config, meta, channels),
    activation=config.task.activation,
    classes=config.task.channels,
    labels=tuple(
      schema.Label(name=n, colour=c, file_value=v)
      for n, c, v in zip(names, colours, values, strict=True)
      if not config.task.affinities
    ),
    training=_training(config, meta),
    scores=dict(scores),
    parameters=schema.Parameters(file='unwritten', sha256='0' * 64),
    sample=schema.Sample(input='sample_input.npy', output='sample_output.npy', source=sample),
    forms={},
  )


def _input(config: config_lib.Config, meta: Meta, channels: int) -> schema.Input:
  size = config.data.voxel_size or meta.voxel_size
  return schema.Input(
    axes='byxc' if len(config.data.patch) == 2 else 'bzyxc',
    channels=channels,
    planes=2 * config.data.neighbours + 1,
    voxel_size_zyx=None if size is None else tuple(size),
    normalisation=_normalisation(normalise.Normalisation.from_json(meta.normalisation)),
  )


def _training(config: config_lib.Config, meta: Meta) -> schema.Training:
  return schema.Training(
    step=meta.step,
    best_step=meta.best_step,
    best_score=meta.best_score if math.isfinite(meta.best_score) else None,
    data=meta.data,
    versions=meta.versions,
    config=config.model_dump(mode='json'),
  )


def _normalisation(normalisation: normalise.Normalisation) -> schema.Normalisation:
  offset, scale = inference.affine(normalisation)
  inside = inference.normalises_inside(normalisation)
  formula = '(pixel - offset) / scale' if inside else _FORMULAS[normalisation.kind]
  return schema.Normalisation(
    **normalisation.to_json(),
    inside=inside,
    offset=offset.tolist(),
    scale=scale.tolist(),
    formula=formula,
  )
