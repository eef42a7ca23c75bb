"""Losses on logits: cross entropy, Dice, and their weighted sum.

Every loss takes logits [B, *spatial, K], labels [B, *spatial] integer and weights [B, *spatial],
and returns a scalar. Everything is computed in float32, whatever dtype the network ran in. K = 1
means one sigmoid output; it is treated as two classes with logits [0, z].

Weight 0 means "ignore this voxel": its label may be any value and its logits may even be NaN,
neither the loss nor its gradient with respect to the logits sees them. Labels under a positive
weight must be in 0..K-1; reading the data checks that.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

__all__ = [
  'LOSSES',
  'as_class_logits',
  'cross_entropy',
  'dice',
  'total_loss',
  'validate_terms',
]

Terms = Mapping[str, tuple[float, Mapping[str, Any]]]


def as_class_logits(logits: jax.Array) -> jax.Array:
  """Logits of two softmax classes where the network gives one sigmoid output; others unchanged.

  softmax([0, z])[1] = 1 / (1 + e^-z) = sigmoid(z), so one formula serves both activations.

  Args:
    logits: [..., K].

  Returns:
    [..., 2] if K is 1, else `logits` itself.
  """
  if logits.shape[-1] != 1:
    return logits
  return jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)


def cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
  """Mean cross entropy (PmcaNet eq. 9, as a mean over voxels instead of a sum).

      L = -sum(w log p_label) / sum(w)

  Args:
    logits: [B, *spatial, K].
    labels: [B, *spatial] integer.
    weights: [B, *spatial], 0 where a voxel must not count.

  Returns:
    Scalar in nats; 0 if all weights are 0.
  """
  z, g, w = _prepare(logits, labels, weights)
  # A product with the one-hot labels, since the gradient of a gather is a scatter, which is slow.
  log_p = jnp.sum(g * jax.nn.log_softmax(z, axis=-1), axis=-1)
  total = jnp.sum(w)
  return -jnp.sum(w * log_p) / jnp.where(total > 0, total, 1.0)


def dice(
  logits: jax.Array,
  labels: jax.Array,
  weights: jax.Array,
  *,
  smooth: float = 1.0,
  exponent: float = 2,
  include_background: bool = True,
) -> jax.Array:
  """One minus the soft Dice coefficient (PmcaNet eq. 8), per image and class, then averaged.

      L_bk = 1 - (2 sum(w p g) + smooth) / (sum(w p^exponent) + sum(w g^exponent) + smooth)

  The sums run over the voxels of one image, the mean over images and classes. Images without any
  positive weight (the padding of a last batch) are left out of the mean. A class that is absent and
  not predicted costs nothing.

  Args:
    logits: [B, *spatial, K].
    labels: [B, *spatial] integer.
    weights: [B, *spatial], 0 where a voxel must not count.
    smooth: keeps empty classes finite; above 0.
    exponent: 2 as in PmcaNet, 1 for the plain form.
    include_background: whether class 0 is one of the classes averaged over.

  Returns:
    Scalar in [0, 1]; 0 if all weights are 0.

  Raises:
    ValueError: `smooth` is not positive or `exponent` is below 1.
  """
  if not smooth > 0:
    raise ValueError(f'smooth is {smooth}, must be above 0')
  if not exponent >= 1:
    raise ValueError(f'exponent is {exponent}, must be 1 or more')
  z, g, w = _prepare(logits, labels, weights)
  p, w = jax.nn.softmax(z, axis=-1), w[..., None]
  if not include_background:
    p, g = p[..., 1:], g[..., 1:]
  spatial = tuple(range(1, w.ndim - 1))
  overlap = jnp.sum(w * p * g, axis=spatial)  # [B, K], as the two below
  predicted = jnp.sum(w * p**exponent, axis=spatial)
  labelled = jnp.sum(w * g, axis=spatial)  # g is 0 or 1: g^exponent = g
  per_image = jnp.mean(1.0 - (2.0 * overlap + smooth) / (predicted + labelled + smooth), axis=-1)
  counted = jnp.any(weights > 0, axis=spatial)
  return jnp.sum(jnp.where(counted, per_image, 0.0)) / jnp.maximum(jnp.sum(counted), 1)


LOSSES: Mapping[str, Callable[..., jax.Array]] = {'ce': cross_entropy, 'dice': dice}


def validate_terms(terms: Terms) -> None:
  """Checks names, options and option values of loss terms; touches no device.

  Args:
    terms: loss name -> (weight, options of that loss).

  Raises:
    ValueError: an unknown loss or option (names the nearest valid one) or an impossible value.
  """
  struct = jax.ShapeDtypeStruct
  arrays = struct((1, 1, 2), jnp.float32), struct((1, 1), jnp.int32), struct((1, 1), jnp.float32)
  for name, (_, options) in terms.items():
    if name not in LOSSES:
      raise ValueError(f'loss.terms: unknown loss {name!r}; {_suggest(name, LOSSES)}')
    loss = LOSSES[name]
    parameters = inspect.signature(loss).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for option in options:
      if option not in known:
        raise ValueError(
          f'loss.terms.{name}.options: unknown option {option!r}; {_suggest(option, known)}'
        )
    try:
      jax.eval_shape(lambda *a, f=loss, o=options: f(*a, **o), *arrays)
    except (TypeError, ValueError) as error:
      raise ValueError(f'loss.terms.{name}.options: {dict(options)} fails: {error}') from error


def total_loss(
  outputs: Mapping[str, jax.Array],
  labels: jax.Array,
  weights: jax.Array,
  *,
  terms: Terms,
  aux_weight: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The weighted sum of the named terms on the main output plus cross entropy on every auxiliary
  head.

      L = sum_t weight_t L_t(logits) + aux_weight sum_a CE(aux_a)

  Args:
    outputs: a network's outputs: 'logits' [B, *spatial, K] and any 'aux/<name>' of the same shape.
    labels: [B, *spatial] integer.
    weights: [B, *spatial], 0 where a voxel must not count.
    terms: loss name -> (weight, options of that loss).
    aux_weight: factor of each auxiliary head.

  Returns:
    The sum, and each term before its factor: {'ce': ..., 'dice': ..., 'aux/<name>': ...}.

  Raises:
    ValueError: as `validate_terms`.
  """
  validate_terms(terms)
  parts = {}
  total = jnp.zeros((), jnp.float32)
  for name, (weight, options) in terms.items():
    parts[name] = LOSSES[name](outputs['logits'], labels, weights, **options)
    total += weight * parts[name]
  for name in sorted(name for name in outputs if name.startswith('aux/')):
    parts[name] = cross_entropy(outputs[name], labels, weights)
    total += aux_weight * parts[name]
  return total, parts


def _prepare(
  logits: jax.Array, labels: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Class logits [B, *spatial, K], 0 where ignored, one-hot labels and weights, all float32."""
  if not logits.shape[:-1] == labels.shape == weights.shape:
    raise ValueError(
      f'logits {logits.shape} without the last axis, labels {labels.shape} and weights '
      f'{weights.shape} must have one shape'
    )
  z = as_class_logits(logits.astype(jnp.float32))
  valid = weights > 0
  # Masking the input, not the loss, is what keeps a NaN out of the gradient.
  z = jnp.where(valid[..., None], z, 0.0)
  g = jax.nn.one_hot(labels, z.shape[-1], dtype=jnp.float32)
  return z, g, jnp.where(valid, weights, 0.0).astype(jnp.float32)


def _suggest(name: str, known: Iterable[str]) -> str:
  """'did you mean ...?' if a known name is near, and all known names."""
  known = sorted(known)
  near = difflib.get_close_matches(name, known, n=1)
  hint = f'did you mean {near[0]!r}? ' if near else ''
  return f'{hint}known: {", ".join(known) or "none"}'
