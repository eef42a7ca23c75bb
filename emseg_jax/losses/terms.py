"""The loss of a configuration: named, weighted terms, each fed with what it is made for."""

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from emseg_jax import config as config_lib
from emseg_jax.losses.atm import atm
from emseg_jax.losses.cldice import soft_cldice
from emseg_jax.losses.cross_entropy import (
  binary_cross_entropy,
  cross_entropy,
  focal,
  ohem_cross_entropy,
)
from emseg_jax.losses.decay import l2
from emseg_jax.losses.lovasz import lovasz_softmax
from emseg_jax.losses.maps import affinity_bce, boundary_bce, boundary_ce, mse
from emseg_jax.losses.overlap import dice, jaccard, tanimoto, tversky
from emseg_jax.losses.tasks import Labels, tasks
from emseg_jax.losses.weighting import WEIGHTINGS, apply_weighting

__all__ = ['LOSSES', 'Kind', 'host_targets', 'needs_class_counts', 'total_loss', 'validate_terms']

Arrays = Mapping[str, jax.Array]
Offsets = Sequence[tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Kind:
  """How a loss is called: with outputs, target and weights, or with the parameters alone.

  Attributes:
    function: the loss.
    outputs: the outputs of the network that it is made for; none: it takes the parameters.
    target: name in the batch of its target: 'label', or what the host computed.
  """

  function: Callable[..., jax.Array]
  outputs: tuple[str, ...] = ('logits',)
  target: str = 'label'


LOSSES: Mapping[str, Kind] = {
  'ce': Kind(cross_entropy),
  'bce': Kind(binary_cross_entropy),
  'focal': Kind(focal),
  'ohem_ce': Kind(ohem_cross_entropy),
  'dice': Kind(dice),
  'jaccard': Kind(jaccard),
  'tanimoto': Kind(tanimoto),
  'tversky': Kind(tversky),
  'lovasz': Kind(lovasz_softmax),
  'cldice': Kind(soft_cldice),
  'mse': Kind(mse, outputs=('centreline',), target='proximity'),
  'boundary_bce': Kind(boundary_bce, outputs=('boundary',)),
  'boundary_ce': Kind(boundary_ce, outputs=('logits', 'boundary')),
  'affinity_bce': Kind(affinity_bce, outputs=('affinities',)),
  'atm': Kind(atm, outputs=('atm/class', 'atm/mask')),
  'l2': Kind(l2, outputs=()),
}
ONE_CLASS_ONLY = ('affinity_bce', 'atm', 'boundary_ce')  # make no sense where classes overlap


def host_targets(loss: config_lib.Loss) -> tuple[str, ...]:
  """Names of the targets that the data have to bring along beside labels, such as 'proximity'."""
  names = {LOSSES[term.loss or name].target for name, term in loss.terms.items()}
  return tuple(sorted(names - {'label'}))


def needs_class_counts(loss: config_lib.Loss) -> bool:
  """Whether some term weights classes by how often they occur in the training labels."""
  return any(
    term.weighting is not None
    and term.weighting.name == 'class'
    and term.weighting.options.get('values', 'auto') == 'auto'
    for term in loss.terms.values()
  )


def validate_terms(
  loss: config_lib.Loss,
  *,
  num_logits: int = 2,
  axes: int = 2,
  multilabel: bool = False,
  offsets: Offsets = (),
) -> None:
  """Checks names, options and option values of loss terms; touches no device.

  Args:
    loss: the section of the configuration.
    num_logits: channels of the logits that the terms will see.
    axes: 2 for images, 3 for volumes.
    multilabel: as in `total_loss`.
    offsets: likewise.

  Raises:
    ValueError: an unknown loss or option (names the nearest valid one), an impossible value, a
      setting that would have no effect, or a term that is not for multilabel tasks or affinities.
  """
  labels = Labels(multilabel, tuple(offsets))
  for name, term in loss.terms.items():
    key = term.loss or name
    if key not in LOSSES:
      raise ValueError(f'loss.terms.{name}: unknown loss {key!r}; {_suggest(key, LOSSES)}')
    kind = LOSSES[key]
    _check_options(f'loss.terms.{name}.options', kind.function, term.options)
    if term.output is not None and len(kind.outputs) != 1:
      reads = ' and '.join(kind.outputs) or 'the parameters'
      raise ValueError(f'loss.terms.{name}.output: must be left out, {key} takes {reads}')
    if term.weighting is not None:
      if not kind.outputs:
        raise ValueError(f'loss.terms.{name}.weighting: must be left out, {key} has no voxels')
      where = f'loss.terms.{name}.weighting.options'
      _check_options(where, WEIGHTINGS[term.weighting.name], term.weighting.options)
    if labels.several:
      _check_several(name, term, labels)
    arrays = _small_arrays(term, kind, num_logits, (8,) * axes, multilabel)
    try:
      jax.eval_shape(lambda *a, n=name, t=term: _value(n, t, *a, labels), *arrays)
    except TypeError as error:  # a value of another type than the loss computes with
      raise ValueError(f'loss.terms.{name}: {_options(term)} fails: {error}') from error


def _check_several(name: str, term: config_lib.LossTerm, labels: Labels) -> None:
  key = term.loss or name
  task = 'affinities' if labels.offsets else 'multilabel'
  if key in ONE_CLASS_ONLY and not _is_of_affinities(key, labels):
    raise ValueError(f'loss.terms.{name}: {key} needs one class per voxel, {task} has several')
  if 'offsets' in term.options:
    raise ValueError(f'loss.terms.{name}.options.offsets: must be left out, they are task.offsets')
  if term.weighting is not None and LOSSES[key].outputs != ('logits',):
    raise ValueError(
      f'loss.terms.{name}.weighting: must be left out, with {task} it is for losses of logits'
    )


def _is_of_affinities(key: str, labels: Labels) -> bool:
  """Whether a loss takes what is the network's main output here."""
  return key == 'affinity_bce' and bool(labels.offsets)


def _check_options(where: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
  parameters = inspect.signature(function).parameters.values()
  known = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - _SUPPLIED
  for option in options:
    if option not in known:
      raise ValueError(f'{where}: unknown option {option!r}; {_suggest(option, known)}')


_SUPPLIED = {'num_classes', 'class_counts'}  # keyword arguments that no configuration gives


def _options(term: config_lib.LossTerm) -> dict[str, Any]:
  return dict(term.options) | (dict(term.weighting.options) if term.weighting else {})


def _small_arrays(
  term: config_lib.LossTerm,
  kind: Kind,
  num_logits: int,
  size: tuple[int, ...],
  multilabel: bool,
) -> tuple[Any, ...]:
  """Outputs, batch, parameters and class counts of one tiny image, as shapes.

  There are no parameters: which of them a pattern finds is only known with the network.
  """

  def real(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)

  offsets = term.options.get('offsets')
  outputs = {
    'logits': real(1, *size, num_logits),
    'centreline': real(1, *size, 1),
    'boundary': real(1, *size, 1),
    'affinities': real(1, *size, len(offsets) if isinstance(offsets, list | tuple) else 1),
    'atm/class': real(1, 1, num_logits, num_logits + 1),
    'atm/mask': real(1, 1, *size, num_logits),
  }
  if term.output is not None:  # a network may have outputs of any name
    outputs.setdefault(term.output, outputs[kind.outputs[0]])
  label = jax.ShapeDtypeStruct((1, *size), jnp.int32)
  batch = {'label': label, 'weight': real(1, *size), 'proximity': real(1, *size)}
  counts = (num_logits, 2) if multilabel else (max(2, num_logits),)
  return outputs, batch, {}, real(*counts)


def total_loss(
  outputs: Arrays,
  batch: Arrays,
  params: Any,
  *,
  loss: config_lib.Loss,
  class_counts: jax.Array | None = None,
  multilabel: bool = False,
  offsets: Offsets = (),
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The weighted sum of the named terms plus cross entropy on every auxiliary head.

      L = sum_t weight_t L_t + sum_a aux_weight_a CE(aux_a)

  With `multilabel` the label is a bit mask of classes that may overlap, and each output a sigmoid:
  a loss of logits is the mean over the classes k of the loss of one sigmoid output,

      L_t = 1/K sum_k L_t(logits_k, bit k of the label),

  weighted by its own two classes. Other losses take the mask as it is, of which 0 is no class.
  With `offsets` it is an instance id, and the mean is over the offsets in the same way, of whether
  voxel and neighbour belong to one object; `affinity_bce` takes all of them at once.

  Args:
    outputs: a network's outputs: 'logits' [B, *spatial, K], any 'aux/<name>' of the same shape, and
      what else its docstring names.
    batch: 'label' [B, *spatial] integer, 'weight' [B, *spatial], 0 where a voxel must not count,
      and the targets that `host_targets` names.
    params: the parameters, for terms that take them.
    loss: the section of the configuration, which `validate_terms` has passed.
    class_counts: voxels per class in the training labels [K], or without and with class k [K, 2]
      for `multilabel`, where `needs_class_counts`.
    multilabel: whether labels are bit masks.
    offsets: one per output, if labels are instance ids.

  Returns:
    The sum, and each term before its factor: {'ce': ..., 'dice': ..., 'aux/<name>': ...}, scalars
    in float32.

  Raises:
    ValueError: a term is for an output that the network does not have, or for parameters that it
      does not have; an auxiliary head has no weight.
  """
  parts, labels = {}, Labels(multilabel, tuple(offsets))
  total = jnp.zeros((), jnp.float32)
  for name, term in loss.terms.items():
    parts[name] = _value(name, term, outputs, batch, params, class_counts, labels)
    total += term.weight * parts[name]
  for name in sorted(name for name in outputs if name.startswith('aux/')):
    heads = tasks(outputs[name], batch, None, labels)
    parts[name] = _mean([cross_entropy(t.logits, t.label, t.weight) for t in heads])
    total += _aux_weight(loss, name.removeprefix('aux/')) * parts[name]
  return total, parts


def _value(
  name: str,
  term: config_lib.LossTerm,
  outputs: Arrays,
  batch: Arrays,
  params: Any,
  class_counts: jax.Array | None,
  labels: Labels,
) -> jax.Array:
  """One term before its factor; its errors say which term it is."""
  kind = LOSSES[term.loss or name]
  reads, options = kind.outputs if term.output is None else (term.output,), dict(term.options)
  if _is_of_affinities(term.loss or name, labels):
    reads, options = (term.output or 'logits',), {'offsets': labels.offsets}
  if missing := [output for output in reads if output not in outputs]:
    raise ValueError(
      f'loss.terms.{name}: the network has no output {missing[0]!r}; it has '
      f'{", ".join(sorted(outputs))}'
    )
  try:
    if not reads:
      return kind.function(params, **options)
    if not (labels.several and kind.outputs == ('logits',)):
      classes = max(2, outputs['logits'].shape[-1])
      weight = _weights(term, batch['label'], batch['weight'], classes, class_counts)
      arrays = (outputs[o] for o in reads)
      return kind.function(*arrays, batch[kind.target], weight, **options)
    values = []
    for task in tasks(outputs[reads[0]], batch, class_counts, labels):
      weight = _weights(term, task.label, task.weight, 2, task.class_counts)
      values.append(kind.function(task.logits, task.label, weight, **options))
    return _mean(values)
  except ValueError as error:
    raise ValueError(f'loss.terms.{name}: {error}') from error


def _weights(
  term: config_lib.LossTerm,
  label: jax.Array,
  weight: jax.Array,
  classes: int,
  class_counts: jax.Array | None,
) -> jax.Array:
  if term.weighting is None:
    return weight
  return apply_weighting(
    term.weighting, label, weight, num_classes=classes, class_counts=class_counts
  )


def _mean(values: Sequence[jax.Array]) -> jax.Array:
  return sum(values) / len(values)


def _aux_weight(loss: config_lib.Loss, name: str) -> float:
  if not isinstance(loss.aux_weight, Mapping):
    return loss.aux_weight
  if name not in loss.aux_weight:
    raise ValueError(f'loss.aux_weight: has no weight for the auxiliary head {name!r}')
  return loss.aux_weight[name]


def _suggest(name: str, known: Iterable[str]) -> str:
  """'did you mean ...?' if a known name is near, and all known names."""
  known = sorted(known)
  near = difflib.get_close_matches(name, known, n=1)
  hint = f'did you mean {near[0]!r}? ' if near else ''
  return f'{hint}known: {", ".join(known) or "none"}'
