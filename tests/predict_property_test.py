"""Any size, type, channels, tiles: prediction gives labels and probabilities of the right kind.

Through `emseg_jax.load(...).predict` on arrays, and through `--mode=predict` on files. Few examples
in `make test`, more under `long`.
"""

import dataclasses
import shutil

import bundle_support
import numpy as np
import pytest
import support
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import emseg_jax
from emseg_jax import bundle as bundle_lib
from emseg_jax import config_io, loading
from emseg_jax.data import volumes
from emseg_jax.segmenter import Segmenter

DTYPES = ('uint8', 'uint16', 'int16', 'float32')
CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large]
FEW = settings(max_examples=8, deadline=None, suppress_health_check=CHECKS)
MANY = settings(max_examples=150, deadline=None, suppress_health_check=CHECKS)


@dataclasses.dataclass(frozen=True)
class Case:
  """Attributes:
  ndim: of the network.
  shape: of the array, without channels.
  channels: None where it has no such axis.
  dtype: of the pixels.
  tile, overlap, blend, batch_size: as in config.predict.
  """

  ndim: int
  shape: tuple[int, ...]
  channels: int | None
  dtype: str
  tile: int
  overlap: float
  blend: str
  batch_size: int
  seed: int

  def array(self):
    shape = self.shape if self.channels is None else (*self.shape, self.channels)
    return (np.random.default_rng(self.seed).random(shape) * 200).astype(self.dtype)

  def overrides(self):
    return [
      f'predict.tile={[self.tile] * self.ndim}', f'predict.overlap={self.overlap}',
      f'predict.blend={self.blend}', f'predict.batch_size={self.batch_size}', 'mesh.data=1',
    ]  # fmt: skip


@st.composite
def cases(draw, *, files=False):
  ndim = draw(st.sampled_from([2, 2, 3]))
  spatial = st.integers(1, 24 if ndim == 3 else 40)
  rank = 3 if ndim == 3 else draw(st.sampled_from([2, 3]))
  shape = [draw(spatial) for _ in range(rank)]
  if rank == 3 and ndim == 2:
    shape[0] = draw(st.integers(1, 3))
  if ndim == 3:  # a single section is no volume, which is refused
    shape[0] = max(2, shape[0])
  if files:  # an axis of one pixel is left out by some formats
    shape = [max(2, side) for side in shape]
  channels = draw(st.sampled_from([None, 1, 3])) if not files else None
  return Case(
    ndim=ndim,
    shape=tuple(shape),
    channels=channels,
    dtype=draw(st.sampled_from(DTYPES)),
    # Few sizes, since each is a compilation.
    tile=8 if ndim == 3 else draw(st.sampled_from([16, 24])),
    overlap=draw(st.sampled_from([0.0, 0.3, 0.75])),
    blend=draw(st.sampled_from(['gaussian', 'uniform'])),
    batch_size=draw(st.sampled_from([1, 3])),
    seed=draw(st.integers(0, 99)),
  )


@pytest.fixture(scope='module')
def models(tmp_path_factory):
  """Folders of a network for sections and of one for volumes, that take any type of pixels."""
  folder = tmp_path_factory.mktemp('property')
  for ndim, model in ((2, bundle_support.NARROW), (3, bundle_support.FLAT)):
    config = bundle_support.make_config(
      model=model, patch=(16,) * ndim, normalisation='per_volume', label_mapping={0: 0, 255: 1}
    )
    bundle = bundle_support.make_bundle(config)
    # Without a voxel size, so that files of any can be predicted.
    place = bundle.record.input.model_copy(update={'voxel_size_zyx': None})
    record = bundle.record.model_copy(update={'input': place})
    bundle_lib.write_bundle(folder / f'{ndim}d', dataclasses.replace(bundle, record=record))
  return folder


@pytest.fixture(scope='module')
def segmenter_of(models):
  """A network with the tiles of a case; each is compiled once."""
  known = {}

  def find(case):
    key = tuple(case.overrides())
    if key not in known:
      path = models / f'{case.ndim}d'
      config = config_io.apply_overrides(bundle_lib.read_config(path), case.overrides())
      known[key] = Segmenter(loading.load_predictor(config, path))
    return known[key]

  return find


def check_array(segmenter, case):
  axes = 'Z' * (len(case.shape) == 3) + 'YX' + 'C' * (case.channels is not None)
  array = case.array()
  found = segmenter.predict(array, axes=axes, probabilities=True)
  assert (found.shape, found.dtype) == ((*case.shape, 2), np.float32)
  assert found.min() >= 0
  assert found.max() <= 1 + 1e-6
  np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
  labels = segmenter.predict(array, axes=axes)
  assert (labels.shape, labels.dtype) == (case.shape, np.uint8)
  np.testing.assert_array_equal(labels, found.argmax(-1))


def check_file(models, folder, case):
  axes = 'ZYX' if len(case.shape) == 3 else 'YX'
  tifffile.imwrite(
    folder / 'in.tif', case.array(), photometric='minisblack', metadata={'axes': axes}
  )
  options = [f'--config.{o}' for o in case.overrides()]
  code = support.run_main(
    f'--workdir={models}/{case.ndim}d', '--mode=predict', f'--input={folder}/in.tif',
    f'--output={folder}/out.tif', '--config.predict.probabilities=uint16', '--quiet', *options,
  )  # fmt: skip
  assert code == 0
  result = volumes.open_volume(folder / 'out.tif', palette='index')
  labels = np.stack(list(result)).reshape(case.shape)
  assert labels.dtype == np.uint8
  assert set(np.unique(labels)) <= {0, 255}
  maps = [tifffile.imread(folder / f'out_prob_{c}.tif') for c in ('cell', 'membrane')]
  assert all(m.dtype == np.uint16 for m in maps)
  first, second = (m.reshape(case.shape).astype(int) for m in maps)
  assert np.abs(first + second - 65535).max() <= 1
  clear = np.abs(first - second) > 2
  np.testing.assert_array_equal((second > first)[clear], (labels == 255)[clear])


@FEW
@given(case=cases())
def test_any_array_is_segmented(segmenter_of, case):
  check_array(segmenter_of(case), case)


@pytest.mark.long
@MANY
@given(case=cases())
def test_any_array_is_segmented_in_many_examples(segmenter_of, case):
  check_array(segmenter_of(case), case)


def in_a_folder(models, tmp_path_factory, case):
  folder = tmp_path_factory.mktemp('file')
  check_file(models, folder, case)
  shutil.rmtree(folder)


@settings(FEW, max_examples=4)
@given(case=cases(files=True))
def test_any_file_is_segmented(models, tmp_path_factory, case):
  in_a_folder(models, tmp_path_factory, case)


@pytest.mark.long
@settings(MANY, max_examples=25)
@given(case=cases(files=True))
def test_any_file_is_segmented_in_many_examples(models, tmp_path_factory, case):
  in_a_folder(models, tmp_path_factory, case)


def test_a_tile_smaller_than_the_divisor_and_an_image_smaller_than_both(models):
  """The network pads 16 to its divisor, and an image of 3 x 5 to the tile."""
  found = emseg_jax.load(models / '2d', tile=(8, 8)).predict(np.eye(3, 5, dtype=np.uint8))
  assert found.shape == (3, 5)
