"""Arrays in, labels out: any layout and type, the trained normalisation, and refusals."""

import bundle_support
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emseg_jax import bundle as bundle_lib
from emseg_jax import segmenter as segmenter_lib
from emseg_jax.errors import BundleError, ConfigError, DataError, Interrupted

RNG = np.random.default_rng(0)
SECTIONS = RNG.integers(0, 256, (3, 37, 50)).astype(np.uint8)


def written(folder, config=None, **normalisation):
  bundle_lib.write_bundle(folder, bundle_support.make_bundle(config, **normalisation))
  return folder


def loaded(folder, config=None, **normalisation):
  return segmenter_lib.load(written(folder, config, **normalisation))


@pytest.fixture(scope='module')
def flat(tmp_path_factory):
  return loaded(tmp_path_factory.mktemp('flat') / 'model')


@pytest.fixture(scope='module')
def relative(tmp_path_factory):
  """Takes pixels of any type: each image is normalised by itself."""
  config = bundle_support.make_config(normalisation='per_volume')
  return loaded(tmp_path_factory.mktemp('relative') / 'model', config)


@pytest.fixture(scope='module')
def deep(tmp_path_factory):
  config = bundle_support.make_config(model=bundle_support.FLAT, patch=(16, 16, 16))
  return loaded(tmp_path_factory.mktemp('deep') / 'model', config)


class Lazy:
  """Sliced like numpy, and notes what was asked for."""

  def __init__(self, array):
    self.array, self.asked = array, []
    self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim

  def __getitem__(self, index):
    self.asked.append(index)
    return self.array[index]


def test_labels_are_the_likeliest_classes_and_probabilities_those_of_the_network(flat):
  bundle = bundle_support.make_bundle()
  # One tile: the network by itself, on pixels normalised by hand.
  image = SECTIONS[0, :32, :32]
  x = (image[None, ..., None].astype(np.float32) - 120) / 40
  logits = bundle.model.apply(bundle.variables, x, train=False)['logits'][0]
  e = np.exp(np.asarray(logits, np.float64))
  expected = e / e.sum(-1, keepdims=True)
  found = flat.predict(image, probabilities=True)
  assert np.ptp(expected[..., 0]) > 0.1
  np.testing.assert_allclose(found, expected, atol=1e-5)
  labels = flat.predict(image)
  assert labels.dtype == np.uint8
  np.testing.assert_array_equal(labels, np.argmax(found, -1))


def test_what_is_known_of_the_network_is_at_hand(flat):
  assert flat.classes == flat.labels == ('cell', 'membrane')
  assert flat.colours == ('#0072b2', '#d55e00')
  assert flat.config.model.name == 'unet'
  assert (flat.meta.step, flat.meta.voxel_size) == (7, (None, 4.0, 4.0))
  assert flat.normalisation.mean == 120
  assert repr(flat) == 'Segmenter(unet, 2D, classes cell, membrane, step 7)'


def test_any_layout_gives_the_same(flat):
  whole = flat.predict(SECTIONS, probabilities=True)
  assert whole.shape == (3, 37, 50, 2)
  for i, section in enumerate(SECTIONS):
    np.testing.assert_array_equal(flat.predict(section, probabilities=True), whole[i])
  labels = flat.predict(SECTIONS)
  np.testing.assert_array_equal(labels, np.argmax(whole, -1))
  cases = {
    'YXZ': (SECTIONS.transpose(1, 2, 0), labels.transpose(1, 2, 0)),
    'xyz': (SECTIONS.T, labels.T),
    'NYX': (SECTIONS, labels),
    'ZYXC': (SECTIONS[..., None], labels),
    'CZYX': (SECTIONS[None], labels),
    'CYX': (SECTIONS[:1], labels[0]),
    'XYC': (SECTIONS[0].T[..., None], labels[0].T),
  }
  for axes, (array, expected) in cases.items():
    np.testing.assert_array_equal(flat.predict(array, axes=axes), expected, err_msg=axes)
  for array in (SECTIONS.astype('>u1'), jax.numpy.asarray(SECTIONS), np.asfortranarray(SECTIONS)):
    np.testing.assert_array_equal(flat.predict(array), labels)


def test_a_stack_is_read_section_by_section(flat):
  lazy = Lazy(SECTIONS)
  np.testing.assert_array_equal(flat.predict(lazy), flat.predict(SECTIONS))
  assert lazy.asked == [0, 1, 2]


def test_the_array_is_not_changed_and_can_still_be(flat):
  image = SECTIONS[0].copy()
  flat.predict(image)
  np.testing.assert_array_equal(image, SECTIONS[0])
  image[0, 0] = 1


def test_grey_and_colour_are_told_by_the_last_axis(flat):
  # Three equal channels are averaged to what grey is.
  colour = np.repeat(SECTIONS[0][..., None], 3, -1)
  np.testing.assert_array_equal(flat.predict(colour), flat.predict(SECTIONS[0]))
  found = flat.predict(np.stack([colour] * 2))
  assert found.shape == (2, 37, 50)
  assert flat.predict(colour[:, :, :3], axes='ZYX').shape == colour.shape


def test_sections_of_a_stack_share_their_statistics_and_images_do_not(relative):
  brighter = SECTIONS[0].astype(np.float32) * 3 + 7
  pair = np.stack([SECTIONS[0].astype(np.float32), brighter])
  images = relative.predict(pair, axes='NYX', probabilities=True)
  np.testing.assert_allclose(images[0], images[1], atol=1e-4)
  stack = relative.predict(pair, probabilities=True)
  assert np.abs(stack[0] - stack[1]).max() > 0.01


def test_a_network_for_volumes(deep):
  volume = RNG.integers(0, 256, (9, 20, 17)).astype(np.uint8)
  labels = deep.predict(volume)
  assert (labels.shape, labels.dtype) == (volume.shape, np.uint8)
  found = deep.predict(volume, probabilities=True)
  np.testing.assert_array_equal(np.argmax(found, -1), labels)
  np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
  with pytest.raises(DataError, match='needs volumes, but its axes are YX'):
    deep.predict(volume[0])


def test_classes_that_overlap_are_bits(tmp_path):
  config = bundle_support.make_config(activation='multilabel', classes=('mito', 'er'))
  seg = loaded(tmp_path / 'model', config)
  assert seg.labels == ('none', 'mito', 'er', 'mito + er')
  assert len(seg.colours) == 4
  found = seg.predict(SECTIONS[0], probabilities=True)
  mask = (found[..., 0] > 0.5) + 2 * (found[..., 1] > 0.5)
  np.testing.assert_array_equal(seg.predict(SECTIONS[0]), mask)


def test_one_sigmoid_gives_two_classes(tmp_path):
  seg = loaded(tmp_path / 'model', bundle_support.make_config(activation='sigmoid'))
  found = seg.predict(SECTIONS[0], probabilities=True)
  assert found.shape == (37, 50, 2)
  np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)


def test_neighbouring_sections_are_seen(tmp_path):
  config = bundle_support.make_config(
    neighbours=1, train=({'phantom': {'count': 1, 'size': (48, 40), 'depth': 4}},), validation=()
  )
  seg = loaded(tmp_path / 'model', config)
  first = seg.predict(SECTIONS, probabilities=True)
  changed = SECTIONS.copy()
  changed[2] = 255 - changed[2]
  second = seg.predict(changed, probabilities=True)
  np.testing.assert_array_equal(first[0], second[0])
  assert np.abs(first[1] - second[1]).max() > 0.01
  with pytest.raises(DataError, match='needs volumes'):
    seg.predict(SECTIONS[0])


def test_voxel_sizes_are_compared_where_both_are_known(flat):
  assert flat.predict(SECTIONS[0], voxel_size=(4, 4)).shape == (37, 50)
  flat.predict(SECTIONS, voxel_size=(30, 4.2, 4))  # z does not matter to sections; 5 % neither
  with pytest.raises(DataError, match=r'array: its voxels are .* 8 x 8 nm'):
    flat.predict(SECTIONS[0], voxel_size=(8, 8))
  for size in ((4,), (0, 4), (1, 2, 3, 4)):
    with pytest.raises(DataError, match='voxel_size='):
      flat.predict(SECTIONS[0], voxel_size=size)


def test_a_network_of_one_voxel_size_resamples_and_brings_back(tmp_path):
  config = bundle_support.make_config(
    voxel_size=(None, 8.0, 8.0), train=({'images': '/nowhere'},), validation=()
  )
  seg = loaded(tmp_path / 'model', config)
  coarse = SECTIONS[0, :20, :24]
  fine = coarse.repeat(2, 0).repeat(2, 1)
  # Means over the pixels of a coarse one are not quite those values: see data/resampled.py.
  found = seg.predict(fine, voxel_size=(4, 4), probabilities=True)
  assert found.shape == (40, 48, 2)
  np.testing.assert_array_equal(found[::2, ::2], found[1::2, 1::2])
  np.testing.assert_array_equal(np.argmax(found, -1), seg.predict(fine, voxel_size=(4, 4)))
  assert seg.predict(coarse, voxel_size=(8, 8)).shape == (20, 24)
  with pytest.raises(DataError, match='voxel_size: is needed'):
    seg.predict(coarse)


@pytest.mark.parametrize(
  ('array', 'options', 'message'),
  [
    (SECTIONS[0].astype(np.float32), {}, 'array: pixels are float32, .* trained on uint8'),
    (SECTIONS[0].astype(complex), {}, 'its type is complex128'),
    (np.array([['a']]), {}, 'its type is <U1'),
    (np.zeros((4, 4, 5), np.uint8), {'axes': 'YXC'}, 'has 5 channels'),
    (np.zeros((2, 8, 8, 4), np.uint8), {}, 'has 4 channels'),
    (np.zeros(5, np.uint8), {}, r'has shape \(5,\)'),
    (np.zeros((2, 2, 2, 2, 2), np.uint8), {}, '2 to 4 axes'),
    (np.zeros((0, 5), np.uint8), {}, r'shape \(1, 0, 5\)'),
    (SECTIONS, {'axes': 'YX'}, "axes='YX'"),
    (SECTIONS, {'axes': 'TYX'}, "axes='TYX'"),
    (SECTIONS, {'axes': 'YXX'}, "axes='YXX'"),
    (SECTIONS, {'axes': 'ZYC'}, "axes='ZYC'"),
  ],
)
def test_arrays_that_cannot_be_used_are_refused(flat, array, options, message):
  with pytest.raises(DataError, match=message):
    flat.predict(array, **options)


def test_values_that_are_not_finite_are_refused(relative):
  image = SECTIONS[0].astype(np.float32)
  image[3, 4] = np.nan
  with pytest.raises(DataError, match='NaN or infinite'):
    relative.predict(image)


def test_it_can_be_stopped(flat):
  with pytest.raises(Interrupted):
    flat.predict(SECTIONS[0], should_stop=lambda: True)


@settings(max_examples=25, deadline=None)
@given(
  spatial=st.lists(st.integers(1, 45), min_size=2, max_size=2),
  depth=st.none() | st.integers(1, 3),
  channels=st.sampled_from([None, 1, 3]),
  dtype=st.sampled_from(['uint8', '>u2', 'int32', 'float16', '<f4', 'float64', 'bool']),
  seed=st.integers(0, 99),
)
def test_any_array_gives_labels_of_its_shape(relative, spatial, depth, channels, dtype, seed):
  shape = [*([] if depth is None else [depth]), *spatial, *([] if channels is None else [channels])]
  axes = 'Z' * (depth is not None) + 'YX' + 'C' * (channels is not None)
  array = (np.random.default_rng(seed).random(shape) * 200).astype(dtype)
  found = relative.predict(array, axes=axes, probabilities=True)
  without = tuple(shape[: len(shape) - (channels is not None)])
  assert found.shape == (*without, 2)
  assert found.dtype == np.float32
  assert np.isfinite(found).all()
  np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
  labels = relative.predict(array, axes=axes)
  assert (labels.shape, labels.dtype) == (without, np.uint8)
  np.testing.assert_array_equal(labels, np.argmax(found, -1))


def test_tile_and_batch_are_options(tmp_path):
  path = written(tmp_path / 'model')
  seg = segmenter_lib.load(path, tile=(16, 16), batch_size=3)
  assert seg.config.predict.tile == (16, 16)
  assert seg.config.predict.batch_size == 3
  assert seg.predict(SECTIONS[0]).shape == (37, 50)
  with pytest.raises(ConfigError, match='must have 2 axes'):
    segmenter_lib.load(path, tile=(16, 16, 16))
  with pytest.raises(ConfigError, match='batch_size'):
    segmenter_lib.load(path, batch_size=0)


def test_a_folder_that_is_neither_model_nor_run_is_refused(tmp_path):
  for path in (tmp_path, tmp_path / 'nowhere'):
    with pytest.raises(BundleError, match='is neither an exported model'):
      segmenter_lib.load(path)
