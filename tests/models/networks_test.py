"""What holds for every network: learning, modes, compilation.

Each network is compiled twice, narrow and on a small input: the gradient in training and the
forward pass in evaluation.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_support import normal, variables

from emseg_jax import models
from emseg_jax.models.backbones.resnet import ResNet50D8

# Options that make a network quick to compile, with the parts of its full form.
TINY = {
  'segmenter': {'width': 1 / 16, 'depth': 2, 'grid': (4, 4)},
  'segvit': {'width': 1 / 16, 'depth': 2, 'taps': (0, 1), 'decoder_layers': 1, 'grid': (4, 4)},
  'rescrnet': {'width': 1 / 16, 'conv_blocks': 2},
}
DEFAULT = {'width': 1 / 16}
# Their only layers that training treats differently draw random numbers or average over a batch.
WITHOUT_STATISTICS = {'unet', 'casser_unet', 'emnet_hvec', 'segmenter', 'segvit', 'fcn8s'}
WITHOUT_DRAWS = {
  'emnet_hvec',
  'segmenter',
  'seget',
  'segnet',
  'unet',
  'unet3d',
  'xiao3d',
  'resunet',
  'vgg_unet',
  'pidnet',
  'deeplabv3plus_vgg',
}
# An instance norm subtracts them in evaluation too; they are part of the published count.
WITHOUT_EFFECT = {'emnet_hvec': "['join']['bias']"}


@pytest.fixture(autouse=True, scope='module')
def _two_blocks_per_stage():
  """One block with and one without projection: a third of ResNet-50's depth to compile."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(ResNet50D8, 'stages', tuple(s._replace(blocks=2) for s in ResNet50D8.stages))
    yield


# Share their parts with cheng2d, and with pmcanet and deeplabv3plus_vgg.
LONG = {'cheng3d', 'deeplabv3plus'}
NETWORKS = [
  pytest.param(name, marks=[pytest.mark.long] if name in LONG else []) for name in models.MODELS
]


@functools.cache
def _tiny(name):
  return models.create_model(name, 2, **TINY.get(name, DEFAULT))


def _shape(name):
  """Two cells of the divisor along y (z), one along the others, but not less than 16 (8).

  Three examples: of two, batch norm makes +1 and -1 where a level is pooled to one voxel.
  """
  if name == 'emnet_hvec':
    return (2, 8, 32, 32, 1)  # the bridge pools the plane once more, to 2 x 2
  divisor = _tiny(name).divisor
  least = 16 if len(divisor) == 2 else 8
  cells = [max(d, -(-least // d) * d) for d in divisor]
  return (3, 2 * cells[0], *cells[1:], 1)


@functools.cache
def _variables(name):
  """Norms are no longer at 1 and 0: there a scale is undone by the next norm's."""
  rng = np.random.default_rng(1)

  def moved(x):
    return x + 0.1 * rng.uniform(size=x.shape).astype(np.float32) if x.ndim == 1 else x

  return jax.tree.map(moved, variables(_tiny(name), _shape(name)))


@functools.cache
def _compiled(name):
  """(gradient in training, forward pass in evaluation), and how often each was traced."""
  model, traces = _tiny(name), {'train': 0, 'eval': 0}

  def loss(params, stats, image, key):
    traces['train'] += 1
    outputs, updates = model.apply(
      {'params': params, **stats},
      image,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': key},
    )
    # Each output counts, and no two voxels or classes alike.
    waves = [
      jnp.mean(jnp.sin(x + jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)))
      for _, x in sorted(outputs.items())
    ]
    return sum(waves), (outputs, updates)

  def forward(params, stats, image):
    traces['eval'] += 1
    return model.apply({'params': params, **stats}, image, train=False)

  gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
  return gradient, jax.jit(forward), traces


def _train(name, image, *, key=0):
  """((loss, (outputs, updates)), gradients)."""
  stats = dict(_variables(name))
  return _compiled(name)[0](stats.pop('params'), stats, image, jax.random.key(key))


def _evaluate(name, image):
  stats = dict(_variables(name))
  return _compiled(name)[1](stats.pop('params'), stats, image)


def _paths(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.mark.parametrize('name', NETWORKS)
def test_every_parameter_learns(name):
  largest: dict[str, float] = {}
  for seed in range(3):
    gradients = _paths(_train(name, normal(*_shape(name), seed=seed), key=seed)[1])
    largest = {path: max(largest.get(path, 0), np.abs(g).max()) for path, g in gradients.items()}
  noise = 1e-7 * max(largest.values())
  without_effect = WITHOUT_EFFECT.get(name, 'none')
  stuck = {p for p, value in largest.items() if value <= noise and not p.endswith(without_effect)}
  # A norm subtracts what a bias right before it adds, but its running mean does not follow: such a
  # bias matters in evaluation.
  assert all(path.endswith("['bias']") for path in stuck)
  if stuck:
    stats = dict(_variables(name))
    params, image = stats.pop('params'), normal(*_shape(name))
    before = _evaluate(name, image)['logits']
    for path in sorted(stuck):
      moved = jax.tree_util.tree_map_with_path(
        lambda p, x, path=path: x + 1.0 * (jax.tree_util.keystr(p) == path), params
      )
      after = _compiled(name)[1](moved, stats, image)['logits']
      assert np.abs(before - after).max() > 1e-6 * np.abs(before).max(), path


@pytest.mark.parametrize('name', NETWORKS)
def test_a_constant_image_gives_finite_outputs_and_gradients_at_the_start(name):
  for value in (0.0, 5.0):
    image = np.full(_shape(name), value, np.float32)
    for result in (_train(name, image), _evaluate(name, image)):
      bad = [path for path, x in _paths(result).items() if not np.isfinite(x).all()]
      assert not bad, bad


@pytest.mark.parametrize('name', NETWORKS)
def test_heads_for_training_are_left_out_in_evaluation(name):
  image = normal(*_shape(name))
  in_training, in_evaluation = _train(name, image)[0][1][0], _evaluate(name, image)
  assert 'logits' in in_evaluation
  assert set(in_evaluation) <= set(in_training)
  assert not {key for key in in_evaluation if key.startswith('aux/')}
  assert in_training['logits'].shape == in_evaluation['logits'].shape == (*image.shape[:-1], 2)


@pytest.mark.parametrize('name', NETWORKS)
def test_training_draws_random_numbers_only_where_the_network_says_so(name):
  image = normal(*_shape(name))
  first, same, other = (_train(name, image, key=key)[0][1][0] for key in (0, 0, 1))
  assert all(np.array_equal(first[key], same[key]) for key in first)
  assert (name in WITHOUT_DRAWS) == all(np.array_equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize('name', NETWORKS)
def test_training_updates_all_running_statistics(name):
  before = _paths(_variables(name).get('batch_stats', {}))
  assert (name in WITHOUT_STATISTICS) == (not before)
  after = _paths(_train(name, 3 + normal(*_shape(name)))[0][1][1].get('batch_stats', {}))
  assert before.keys() == after.keys()
  unchanged = [path for path in before if np.array_equal(before[path], after[path])]
  assert not unchanged, unchanged


@pytest.mark.parametrize('name', sorted(set(models.MODELS) & WITHOUT_STATISTICS & WITHOUT_DRAWS))
def test_without_statistics_and_draws_training_and_evaluation_are_the_same(name):
  image = normal(*_shape(name))
  logits = _train(name, image)[0][1][0]['logits'], _evaluate(name, image)['logits']
  np.testing.assert_allclose(*logits, atol=1e-5)


@pytest.mark.parametrize('name', NETWORKS)
def test_images_of_one_shape_compile_once(name):
  for seed in range(2):
    _train(name, normal(*_shape(name), seed=seed))
    _evaluate(name, normal(*_shape(name), seed=seed))
  assert _compiled(name)[2] == {'train': 1, 'eval': 1}


@pytest.mark.long
@pytest.mark.parametrize('name', models.MODELS)
def test_a_bfloat16_network_says_nearly_what_a_float32_one_says(name):
  image, stats = normal(*_shape(name)), dict(_variables(name))
  half = models.create_model(name, 2, dtype=jnp.bfloat16, **TINY.get(name, DEFAULT))
  apply = jax.jit(lambda variables, image: half.apply(variables, image, train=False)['logits'])
  logits, expected = apply(stats, image), _evaluate(name, image)['logits']
  assert logits.dtype == jnp.float32
  spread = np.std(expected)
  assert spread > 0
  # Eight bits of mantissa, rounded in each of up to 70 layers; a wrong layer is off by `spread`.
  assert np.sqrt(np.mean((logits - expected) ** 2)) < 0.25 * spread
