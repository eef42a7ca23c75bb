"""Checkpoints: what is kept, and that no damage to any file goes unnoticed."""

import dataclasses
import logging
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emseg_jax import errors
from emseg_jax.checkpoint import Checkpoints, Meta, state_digests
from emseg_jax.train_state import TrainState


def _state(step: int) -> TrainState:
  kernel = jax.random.normal(jax.random.key(step), (3, 3, 4, 8))
  return TrainState(
    step=jnp.asarray(step, jnp.int32),
    params={'conv': {'kernel': kernel, 'bias': jnp.full((8,), float(step))}},
    batch_stats={'mean': jnp.zeros((8,))},
    opt_state=(jnp.ones((8,)), jnp.asarray(step, jnp.int32)),
  )


def _meta(step: int, *, best: int = -1) -> Meta:
  return Meta(
    step=step,
    evaluated_step=step,
    best_step=best,
    best_score=0.5,
    normalisation={'kind': 'scale'},
    data='fingerprint',
    config={'train': {'steps': 3}},
    versions={'jax': jax.__version__},
  )


def _abstract() -> TrainState:
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), _state(0)
  )


def _saved(folder: Path, steps, *, best: int = -1, keep: int = 2) -> Path:
  checkpoints = Checkpoints(folder / 'checkpoints', keep=keep)
  for step in steps:
    checkpoints.save(_state(step), _meta(step, best=best if step >= best else -1))
  checkpoints.wait()
  checkpoints.close()
  return folder / 'checkpoints'


def test_a_saved_state_comes_back_bit_for_bit(tmp_path):
  folder = _saved(tmp_path, [1])
  state, meta = Checkpoints(folder, keep=2).restore_latest(_abstract())
  chex.assert_trees_all_equal(state, _state(1))
  assert meta == _meta(1)


def test_latest_two_and_the_best_are_kept(tmp_path):
  folder = _saved(tmp_path, [1, 2, 3, 4, 5], best=2)
  assert Checkpoints(folder, keep=2).steps() == [2, 4, 5]


def test_best_is_restored_when_asked_for(tmp_path):
  folder = _saved(tmp_path, [1, 2, 3], best=1)
  checkpoints = Checkpoints(folder, keep=2, read_only=True)
  assert checkpoints.restore(_abstract(), which='best')[1].step == 1
  assert checkpoints.restore(_abstract(), which='latest')[1].step == 3


def test_a_step_can_be_saved_again_with_new_meta_data(tmp_path):
  checkpoints = Checkpoints(tmp_path / 'checkpoints', keep=2)
  checkpoints.save(_state(1), _meta(1))
  checkpoints.save(_state(1), _meta(1, best=1))
  checkpoints.wait()
  assert checkpoints.restore_latest(_abstract())[1].best_step == 1


def test_one_changed_element_changes_its_digest_only():
  state = _state(1)
  changed = dataclasses.replace(
    state,
    params={'conv': state.params['conv'] | {'bias': state.params['conv']['bias'].at[3].set(-1)}},
  )
  differ = [a != b for a, b in zip(state_digests(state), state_digests(changed), strict=True)]
  assert sum(differ) == 1


def _damage(path: Path, kind: str, rng: np.random.Generator) -> bool:
  content = bytearray(path.read_bytes())
  if not content:
    return False
  if kind == 'truncate':
    path.write_bytes(content[: len(content) // 2])
  elif kind == 'delete':
    path.unlink()
  else:
    content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)
  return True


# Where one array cannot be read, orbax's event loop ends before the reads of the others do; what
# these want to tell it then cannot be raised anywhere. It is out of our reach, and does no harm.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize('kind', ['truncate', 'delete', 'flip'])
def test_damage_to_any_file_falls_back_to_the_checkpoint_before(tmp_path, kind, caplog):
  """Each kind of file in turn. A harmless change may leave step 2 usable, but then its bits are
  right.
  """
  caplog.set_level(logging.WARNING)
  source = _saved(tmp_path, [1, 2])
  files = [f.relative_to(source / '00000002') for f in sorted((source / '00000002').rglob('*'))]
  rng = np.random.default_rng(0)
  fell_back = 0
  for number, name in enumerate(f for f in files if (source / '00000002' / f).is_file()):
    copy = tmp_path / f'copy{number}' / 'checkpoints'
    shutil.copytree(source, copy)
    if not _damage(copy / '00000002' / name, kind, rng):
      continue
    caplog.clear()
    checkpoints = Checkpoints(copy, keep=2)
    state, meta = checkpoints.restore_latest(_abstract())
    chex.assert_trees_all_equal(state, _state(meta.step))
    if meta.step == 1:
      fell_back += 1
      assert 'step 2' in caplog.text
      assert (copy.parent / 'broken' / '00000002').is_dir()
      checkpoints.save(_state(2), _meta(2))  # training reaches step 2 again and can save it
      checkpoints.wait()
      assert checkpoints.restore_latest(_abstract())[1].step == 2
  assert fell_back >= 3


def test_flipped_bits_of_the_arrays_never_come_back(tmp_path):
  """Twenty random flips in the largest data file, each found or harmless."""
  source = _saved(tmp_path, [1, 2])
  data = max((source / '00000002').rglob('*'), key=lambda f: f.stat().st_size if f.is_file() else 0)
  original, rng = data.read_bytes(), np.random.default_rng(1)
  checkpoints = Checkpoints(source, keep=2, read_only=True)
  for _ in range(20):
    _damage(data, 'flip', rng)
    state, meta = checkpoints.restore_latest(_abstract())
    chex.assert_trees_all_equal(state, _state(meta.step))
    data.write_bytes(original)


def test_altered_meta_data_are_noticed(tmp_path):
  folder = _saved(tmp_path, [1, 2])
  path = folder / '00000002' / 'meta' / 'metadata'
  path.write_text(path.read_text().replace('"best_score": 0.5', '"best_score": 0.9'))
  assert Checkpoints(folder, keep=2).restore_latest(_abstract())[1].step == 1


def test_no_checkpoint_at_all_is_none_and_only_broken_ones_are_an_error(tmp_path):
  assert Checkpoints(tmp_path / 'empty', keep=2).restore_latest(_abstract()) is None
  folder = _saved(tmp_path, [1])
  (folder / '00000001' / 'meta' / 'metadata').write_text('{')
  with pytest.raises(errors.CheckpointError, match=r'\[1\] is intact'):
    Checkpoints(folder, keep=2, read_only=True).restore_latest(_abstract())


def test_reading_a_run_that_does_not_exist_says_so(tmp_path):
  with pytest.raises(errors.CheckpointError, match='no such folder'):
    Checkpoints(tmp_path / 'missing', keep=2, read_only=True)
