"""A trained network as an object: arrays in, labels or probabilities out.

    segmenter = load('model/')
    labels = segmenter.predict(image)

Nothing global is changed, so it can be used where JAX is in use already.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from emseg_jax import bundle, config_io, loading, predict, workdir
from emseg_jax import colours as colours_lib
from emseg_jax import config as config_lib
from emseg_jax.checkpoint import Meta
from emseg_jax.data import blocks, normalise, pairs, resampled, volumes, voxel_sizes
from emseg_jax.errors import BundleError, ConfigError, DataError
from emseg_jax.postprocess import affinities

__all__ = ['Segmenter', 'load']

StopFn = Callable[[], bool]


def load(
  path: str | Path,
  *,
  tile: Sequence[int] | None = None,
  batch_size: int | None = None,
  params: Literal['float32', 'bf16', 'int8'] = 'float32',
) -> 'Segmenter':
  """Loads a trained network.

  Args:
    path: folder of an exported model, or work directory of a run.
    tile: size (y, x) or (z, y, x) of what the network is given at once, voxels; None: as in
      training.
    batch_size: tiles per device call; None: as in training.
    params: which parameters of an exported model: those in fewer bits are there if --forms of its
      export named them.

  Raises:
    BundleError, CheckpointError: the folder is damaged, or neither of both, or has no such
      parameters.
    ConfigError: the tile has another number of axes than the network, or a number is below 1; or
      the folder is a run, and `params` is not float32.
  """
  path = Path(path)
  if bundle.is_bundle(path):
    config = bundle.read_config(path)
  elif (path / 'config.json').is_file():
    config = workdir.read_config(path)
  else:
    raise BundleError(
      f'{path}: is neither an exported model (no model.json) nor a run (no config.json)'
    )
  config = _configured(config, tile, batch_size, params)
  return Segmenter(loading.load_predictor(config, path))


def _configured(
  config: config_lib.Config, tile: Sequence[int] | None, batch_size: int | None, params: str
) -> config_lib.Config:
  """For all devices here, which need not be those of the training."""
  overrides = ['mesh.data=-1', 'mesh.space=1', f'predict.params={params}']
  if tile is not None:
    if len(tile) != len(config.data.patch):
      raise ConfigError(
        f'tile={tuple(tile)}: must have {len(config.data.patch)} axes, as data.patch='
        f'{config.data.patch}'
      )
    overrides.append(f'predict.tile={[int(side) for side in tile]}')
  if batch_size is not None:
    overrides.append(f'predict.batch_size={batch_size}')
  return config_io.apply_overrides(config, overrides)


class Segmenter:
  """Segments arrays; made by `load`.

  Attributes:
    classes: names of the channels of probabilities; of affinities those of the offsets.
    labels: names of what a label pixel can be, by its value: the classes, or masks of classes that
      overlap; none of instances.
    colours: '#rrggbb' for each of `labels`.
    config: of the training run.
    meta: what is known of the parameters: step, score, versions, voxel size and others.
  """

  def __init__(self, predictor: predict.Predictor):
    self._predictor = predictor
    self.config: config_lib.Config = predictor.config
    self.meta: Meta = predictor.meta
    self.classes: tuple[str, ...] = self.config.task.channels
    self.labels: tuple[str, ...] = () if self.config.task.affinities else self.config.task.values

  def __repr__(self) -> str:
    return (
      f'Segmenter({self.config.model.name}, {len(self.config.data.patch)}D, classes '
      f'{", ".join(self.classes)}, step {self.meta.step})'
    )

  @property
  def colours(self) -> tuple[str, ...]:
    return colours_lib.class_colours(self.config.task.colours, len(self.labels))

  @property
  def normalisation(self) -> normalise.Normalisation:
    """Of the training images; arrays are normalised by it."""
    return self._predictor.normalisation

  def predict(
    self,
    array: Any,
    *,
    voxel_size: Sequence[float | None] | None = None,
    axes: str | None = None,
    probabilities: bool = False,
    should_stop: StopFn | None = None,
  ) -> np.ndarray:
    """Segments an image, a stack of sections or a volume.

    Args:
      array: pixels as the files hold them, of the type of the training images; numpy, or anything
        that has a shape and a dtype and is sliced like numpy (Zarr, HDF5, TensorStore, JAX), of
        which one section is read at a time by networks for sections.
      voxel_size: (z, y, x) or (y, x) in nm; checked against that of the training images, or brought
        to data.voxel_size where that is set.
      axes: 'Y', 'X' and perhaps 'Z' for sections of one volume or 'N' for unrelated images, and 'C'
        for 1 or 3 channels, in their order. None: YX, ZYX, ZYXC; YXC if the last of three axes has
        a size of 3.
      probabilities: return these instead of labels.
      should_stop: asked between batches of tiles.

    Returns:
      uint8 labels, of the shape of the array without its channels: indices into `labels`; or uint32
      instances, of affinities, of a volume or of each section. With `probabilities`
      float32 probabilities, with the classes as a last axis.

    Raises:
      DataError: the array has other axes, type, channels or voxel size than the network can use, or
        values that are not finite.
      Interrupted: `should_stop` said so.
    """
    order, given = _volume(array, axes, voxel_size)
    if 'Z' not in order and (len(self.config.data.patch) == 3 or self.config.data.neighbours):
      raise DataError(f'array: the network needs volumes, but its axes are {order}; give ZYX')
    volume = self._prepared(given)
    cache = int(self.config.data.cache_gb * 1e9) if self.config.data.neighbours else 0
    split = pairs.Split.of_images(volume, cache_bytes=cache)
    groups = self._groups(split, should_stop)
    found = itertools.chain.from_iterable(groups)
    if not probabilities:
      if self.config.task.affinities and volume is not given:
        raise DataError('array: is resampled to data.voxel_size, but offsets are in voxels')
      labels = itertools.chain.from_iterable(map(self._labels, groups))
      result = np.stack(list(resampled.back(labels, volume, given)))
    elif volume is given:
      result = np.stack(list(found))
    else:
      maps = np.stack(list(found))
      back = [np.stack(list(resampled.back(m, volume, given))) for m in np.moveaxis(maps, -1, 0)]
      result = np.stack(back, axis=-1)
    result = result if 'Z' in order or 'N' in order else result[0]
    return _as_given(result, order)

  def _prepared(self, given: volumes.Volume) -> volumes.Volume:
    """The volume as the network wants it."""
    predict.check_type(given, self.normalisation)
    wished = self.config.data.voxel_size
    if wished is not None:
      if given.voxel_size_zyx is None:
        raise DataError(f'voxel_size: is needed, the network works at {wished} nm (z, y, x)')
      return resampled.resample(given, wished, labels=False)
    if self.meta.voxel_size is not None:
      ndim = len(self.config.data.patch)
      voxel_sizes.check(given, self.meta.voxel_size, ndim=ndim, of='those trained on')
    return given

  def _labels(self, probabilities: np.ndarray) -> np.ndarray:
    """Of a group [Z, Y, X, K]."""
    task = self.config.task
    if not task.affinities:
      return predict.label_values(probabilities, task)
    maps = {offset: probabilities[..., k] for k, offset in enumerate(task.offsets)}
    return affinities.segment(affinities.quantised(maps), self.config.postprocess)

  def _groups(self, split: pairs.Split, should_stop: StopFn | None) -> Iterator[np.ndarray]:
    """Probabilities [Z, Y, X, K] of the volumes, or sections, in order."""
    for group in blocks.groups(split, len(self.config.data.patch)):
      found = self._predictor.group_probabilities(split, group, should_stop)
      yield found.reshape(len(group), *found.shape[-3:])


class _Sections:
  """An array [Y, X] or [Z, Y, X], perhaps with colours, as a sequence of sections."""

  def __init__(self, array: Any, dtype: np.dtype, *, single: bool, squeeze: bool):
    self._array, self.dtype, self._single, self._squeeze = array, dtype, single, squeeze
    shape = tuple(array.shape[:-1] if squeeze else array.shape)
    self.shape = (1, *shape) if single else shape
    self.ndim = len(self.shape)

  def __len__(self) -> int:
    return self.shape[0]

  def __getitem__(self, index: int) -> np.ndarray:
    section = np.asarray(self._array[...] if self._single else self._array[index])
    return section[..., 0] if self._squeeze else section


def _volume(
  array: Any, axes: str | None, voxel_size: Sequence[float | None] | None
) -> tuple[str, volumes.ArrayVolume]:
  """The axes as given, and the array as a volume; nothing is read unless axes have to move."""
  if not hasattr(array, 'shape') or not hasattr(array, 'dtype'):
    array = np.asarray(array)
  # TensorStore has types of its own.
  dtype = np.dtype(getattr(array.dtype, 'numpy_dtype', array.dtype))
  if dtype.kind not in 'buif':
    raise DataError(f'array: its type is {dtype}, pixels must be integers or floats')
  shape = tuple(array.shape)
  axes = _axes(shape, axes)
  straight = ''.join(a for a in 'NZYXC' if a in axes)
  if axes != straight:
    array = np.asarray(array).transpose([axes.index(a) for a in straight])
  channels = array.shape[-1] if 'C' in axes else 1
  if channels not in (1, 3):
    raise DataError(
      f'array: has {channels} channels (shape {shape}, axes {axes}), 1 or 3 are allowed; '
      'give its axes if it has none, or leave out alpha'
    )
  sections = _Sections(
    array, dtype, single=not axes.strip('YXC'), squeeze='C' in axes and channels == 1
  )
  size = None
  if voxel_size is not None:
    size = (*(None,) * (3 - len(voxel_size)), *voxel_size)
    if len(voxel_size) not in (2, 3) or any(s is not None and not s > 0 for s in size):
      raise DataError(f'voxel_size={voxel_size}: must be (z, y, x) or (y, x), in nm and above 0')
  kind = 'ZYX' if 'Z' in axes else 'NYX'
  return axes, volumes.ArrayVolume(sections, name='array', axes=kind, voxel_size_zyx=size)


def _axes(shape: tuple[int, ...], axes: str | None) -> str:
  if axes is None:
    by_rank = {2: 'YX', 3: 'YXC' if shape[-1] == 3 else 'ZYX', 4: 'ZYXC'}
    if len(shape) not in by_rank:
      raise DataError(f'array: has shape {shape}, 2 to 4 axes are allowed')
    return by_rank[len(shape)]
  axes = axes.upper()
  rest = axes.replace('Y', '').replace('X', '').replace('C', '')
  ok = {'Y', 'X'} <= set(axes) and len(set(axes)) == len(axes) and rest in ('', 'Z', 'N')
  if not ok or len(axes) != len(shape):
    raise DataError(
      f'axes={axes!r}: must name each of the {len(shape)} axes of the array of shape {shape} once: '
      'Y, X, perhaps Z or N, and perhaps C'
    )
  return axes


def _as_given(result: np.ndarray, axes: str) -> np.ndarray:
  """Puts the spatial axes into the order of the array; the classes stay behind."""
  spatial = axes.replace('C', '')
  straight = [a for a in 'NZYX' if a in spatial]
  order = [straight.index(a) for a in spatial]
  return result.transpose(*order, *range(len(order), result.ndim))
