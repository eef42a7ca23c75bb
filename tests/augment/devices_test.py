"""The same seed gives the same picture, bit for bit, on any devices and in any batch."""

import functools

import jax
import numpy as np
import pytest
from augment_support import KEY, run, tissue
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from emseg_jax import augment, config

WARPED = {'resize': (0.5, 2.0), 'rotate': 90, 'shear': 15, 'shift': 0.1, 'elastic': 3.0}
RECOLOURED = {'brightness': 0.3, 'contrast': 0.3, 'gamma': 0.3, 'noise': 0.2, 'blur': 1.0}
OF_IMAGES = {'motion_blur': 0.5, 'cut_out': 0.5, 'cut_noise': 0.5, 'stripes': 0.5, 'bands': 0.5}
OF_VOLUMES = {'missing_section': 0.5, 'misalignment': 0.5, 'slice_shift': 0.5, 'shift': 2}
# Odd sizes, so that rows end in the middle of a processor's vectors.
CASES = {
  'image': ((17, 17), config.Augment(**WARPED, **RECOLOURED, defects=OF_IMAGES)),
  'volume': (
    (5, 9, 9),
    config.Augment(
      **WARPED, noise=0.2, flip='zyx', isotropic=True, fill='ignore', defects=OF_VOLUMES
    ),
  ),
}
FIELDS = 'image', 'label', 'weight', 'proximity'


def case_batch(case, indices):
  patch, options = CASES[case]
  batch = tissue(indices, augment.read_size(options, patch))
  batch['proximity'] = np.abs(batch['image'][..., 0])
  return batch, options, patch


@functools.cache
def eight(case):
  """Examples 0 to 7 in one batch on one device."""
  return run(*case_batch(case, range(8)))


@pytest.mark.parametrize('case', CASES)
def test_same_bits_on_one_and_on_eight_devices_without_communication(case):
  batch, options, patch = case_batch(case, range(8))
  mesh = jax.make_mesh((8, 1), ('data', 'space'), axis_types=(AxisType.Auto,) * 2)
  split = NamedSharding(mesh, PartitionSpec('data'))
  call = jax.jit(
    functools.partial(augment.augment, options=options, patch=patch), out_shardings=split
  )
  sharded = jax.device_put(batch, split)
  compiled = call.lower(sharded, KEY).compile()
  assert not any(op in compiled.as_text() for op in ('all-gather', 'all-reduce', 'all-to-all'))
  together = compiled(sharded, KEY)
  for name in FIELDS:
    assert len(together[name].sharding.device_set) == 8
    np.testing.assert_array_equal(np.asarray(together[name]), eight(case)[name])


@pytest.mark.parametrize('case', CASES)
def test_an_example_does_not_depend_on_its_batch(case):
  batch, options, patch = case_batch(case, [6, 3, 1])
  few = run(batch, options, patch)
  for name in FIELDS:
    np.testing.assert_array_equal(few[name], eight(case)[name][[6, 3, 1]])


def test_no_two_examples_and_no_two_steps_draw_the_same():
  batch, options, patch = case_batch('image', [3] * 8)  # eight times one image
  batch['index'] = np.arange(8, dtype=np.int32)
  first = run(batch, options, patch)['image']
  assert len(np.unique(first.reshape(8, -1), axis=0)) == 8
  np.testing.assert_array_equal(run(batch, options, patch)['image'], first)
  later = run(batch, options, patch, key=jax.random.fold_in(KEY, 1))['image']
  assert not any(np.array_equal(a, b) for a, b in zip(first, later, strict=True))


def test_switching_one_change_on_leaves_the_draws_of_the_others():
  batch, _, patch = case_batch('image', range(8))
  turns = {'flip': 'yx', 'rotate90': True}
  plain = run(batch, config.Augment(**turns), patch)
  coloured = run(batch, config.Augment(**turns, gamma=0.3, noise=0.2, blur=1.0), patch)
  np.testing.assert_array_equal(plain['label'], coloured['label'])
  assert not np.array_equal(plain['image'], coloured['image'])
