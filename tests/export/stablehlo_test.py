"""model.stablehlo: runs without this package, at any size, and says which sizes it takes."""

import subprocess
import sys

import bundle_support
import jax
import jax.numpy as jnp
import model_support
import numpy as np
import pytest

from emseg_jax import bundle as bundle_lib
from emseg_jax import models
from emseg_jax.data import normalise
from emseg_jax.export import inference, stablehlo

# As on a machine where JAX, numpy and flatbuffers are all there is.
ALONE = """
import sys
class Absent:
  def find_spec(name, path=None, target=None):
    if name.split('.')[0] in ('emseg_jax', 'flax', 'optax', 'orbax', 'safetensors', 'pydantic'):
      raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent)
import jax, jax.export, numpy as np
exported = jax.export.deserialize(open(f'{sys.argv[1]}/model.stablehlo', 'rb').read())
for name in sys.argv[2:]:
  image = np.load(f'{sys.argv[1]}/{name}.npy')
  np.save(f'{sys.argv[1]}/{name}_found.npy', jax.jit(exported.call)(image))
assert not {'emseg_jax', 'flax'} & set(sys.modules)
"""

# As small as the networks get; the sizes that free them.
NETWORKS = {
  'pmcanet': {'width': 1 / 16},
  'vgg_unet': {'width': 1 / 16},
  'seget': {'width': 1 / 16},
  'rescrnet': {'filters': 2, 'conv_blocks': 1, 'lstm_blocks': 1},
  'unet': {'width': 1 / 32},
  'unet3d': {'width': 1 / 32},
}
ANY = 'Any number of images of any size.'


def test_it_runs_with_jax_alone_and_gives_the_same_at_several_sizes(tmp_path):
  path = tmp_path / 'model'
  bundle = bundle_support.make_bundle()
  bundle_lib.write_bundle(path, bundle, forms={'stablehlo': stablehlo.write})
  images = {'sample_input': bundle.sample[0]}
  rng = np.random.default_rng(0)
  for count, size in ((1, (37, 20)), (3, (16, 48))):
    name = f'{count}_{size[0]}'
    images[name] = rng.integers(0, 256, (count, *size, 1)).astype(np.float32)
    np.save(path / f'{name}.npy', images[name])
  subprocess.run([sys.executable, '-c', ALONE, str(path), *images], check=True)
  infer = inference.of_bundle(bundle)
  for name, image in images.items():
    found = np.load(path / f'{name}_found.npy')
    expected = jax.jit(infer)(bundle.variables, image)
    assert found.dtype == np.float32
    assert np.ptp(found[..., 0]) > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5)
  np.testing.assert_allclose(np.load(path / 'sample_input_found.npy'), bundle.sample[1], atol=1e-5)
  form = bundle_lib.read_bundle(path).record.forms['stablehlo']
  assert form['sizes'] == ANY
  assert form['platforms'] == ['cpu', 'cuda', 'tpu']
  assert (form['input'], form['output']) == (['b', 'y', 'x', '1'], ['b', 'y', 'x', '2'])


def export(name, **options):
  model = models.create_model(name, 2, **options)
  image = (1, *(max(32, d) for d in model.divisor), 1)
  values = model_support.moved(model_support.variables(model, image))
  normalisation = normalise.Normalisation('scale', 1, 0.0, 1.0, 'uint8')
  infer = inference.make_inference(model, normalisation)
  exported, sizes = stablehlo.export_function(
    lambda x: infer(values, x), divisor=model.divisor, channels=1, fixed=image[1:-1]
  )
  return exported, sizes


@pytest.mark.parametrize('name', NETWORKS)
def test_sizes_are_free(name):
  exported, sizes = export(name, **NETWORKS[name])
  assert sizes == ANY
  assert all(jax.export.is_symbolic_dim(n) for n in exported.in_avals[0].shape[:-1])


@pytest.mark.long
def test_em_net_pools_odd_sizes_otherwise_and_so_takes_even_ones():
  exported, sizes = export('emnet_hvec', width=1 / 16)
  assert sizes == (
    'Any number of images; z a multiple of 8, y a multiple of 16, x a multiple of 16.'
  )
  assert str(exported.in_avals[0].shape) == '(b, 8*z, 16*y, 16*x, 1)'


def even_only(image):
  """Cannot do with sizes of which it is not known whether they are even."""
  assert image.shape[1] % 2 == 0
  return image


def constant_only(image):
  assert not jax.export.is_symbolic_dim(image.shape[1])
  return image


@pytest.mark.parametrize(
  ('infer', 'divisor', 'sizes', 'shape'),
  [
    (jnp.abs, (3, 5), ANY, '(b, y, x, 1)'),
    (
      even_only,
      (2, 3),
      'Any number of images; y a multiple of 2, x a multiple of 3.',
      '(b, 2*y, 3*x, 1)',
    ),
    (
      even_only,
      (3, 5),
      'Any number of images; y a multiple of 6, x a multiple of 10.',
      '(b, 6*y, 10*x, 1)',
    ),
    (constant_only, (3, 5), 'Any number of images of 15 x 20 (y, x) voxels.', '(b, 15, 20, 1)'),
  ],
)
def test_sizes_are_as_free_as_the_network_allows(infer, divisor, sizes, shape):
  exported, found = stablehlo.export_function(infer, divisor=divisor, channels=1, fixed=(15, 20))
  assert found == sizes
  assert str(exported.in_avals[0].shape) == shape


def test_a_function_that_cannot_be_exported_at_all_says_why():
  def broken(image):
    raise RuntimeError('no such layer')

  with pytest.raises(RuntimeError, match='no such layer'):
    stablehlo.export_function(broken, divisor=(1, 1), channels=1, fixed=(4, 4))
