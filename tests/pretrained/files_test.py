"""Files of pretrained weights: every layout of Keras, safetensors, and what is refused."""

import pickle
import zipfile

import h5py
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from emseg_jax.errors import DataError
from emseg_jax.pretrained import files

KERNEL = np.arange(54, dtype=np.float32).reshape(3, 3, 2, 3)
BIAS = np.array([1, 2, 3], np.float32)


def _hdf5(path, tensors):
  with h5py.File(path, 'w') as file:
    for name, value in tensors.items():
      file[name] = value
  return path


@pytest.mark.parametrize(
  ('kernel', 'bias'),
  [
    # Weights of Keras 1 and 2, whole models of Keras 2, 3 and of a network inside another.
    ('block1_conv1/block1_conv1_W_1:0', 'block1_conv1/block1_conv1_b_1:0'),
    ('block1_conv1/block1_conv1/kernel:0', 'block1_conv1/block1_conv1/bias:0'),
    (
      'model_weights/block1_conv1/block1_conv1/kernel:0',
      'model_weights/block1_conv1/block1_conv1/bias:0',
    ),
    (
      'model_weights/block1_conv1/block1_conv1/kernel',
      'model_weights/block1_conv1/block1_conv1/bias',
    ),
    ('model_weights/vgg16/block1_conv1/kernel:0', 'model_weights/vgg16/block1_conv1/bias:0'),
  ],
)
def test_kernel_and_bias_have_the_same_names_in_all_layouts_of_keras(tmp_path, kernel, bias):
  tensors = files.read(_hdf5(tmp_path / 'w.h5', {bias: BIAS, kernel: KERNEL}))
  assert tensors.keys() == {'block1_conv1/kernel', 'block1_conv1/bias'}
  np.testing.assert_array_equal(tensors['block1_conv1/kernel'], KERNEL)
  np.testing.assert_array_equal(tensors['block1_conv1/bias'], BIAS)


def test_weights_of_keras_3_go_by_the_name_that_the_layer_carries(tmp_path):
  path = _hdf5(
    tmp_path / 'w.weights.h5',
    {'layers/conv2d_1/vars/0': KERNEL, 'layers/conv2d_1/vars/1': BIAS, 'layers/dense/vars/0': BIAS},
  )
  with h5py.File(path, 'a') as file:
    file['layers/conv2d_1/vars'].attrs['name'] = 'block1_conv1'
  # A vector without a kernel is no convolution's: it keeps its path.
  names = {'block1_conv1/kernel', 'block1_conv1/bias', '/layers/dense/vars/0'}
  assert files.read(path).keys() == names


def test_the_state_of_the_optimiser_is_left_out(tmp_path):
  tensors = {
    'model_weights/block1_conv1/kernel': KERNEL,
    'optimizer_weights/adam/block1_conv1/kernel': KERNEL,
  }
  assert files.read(_hdf5(tmp_path / 'a.h5', tensors)).keys() == {'block1_conv1/kernel'}
  tensors = {'layers/block1_conv1/vars/0': KERNEL, 'optimizer/vars/1': KERNEL}
  assert files.read(_hdf5(tmp_path / 'b.h5', tensors)).keys() == {'block1_conv1/kernel'}


def test_layers_that_are_no_convolutions_keep_the_paths_of_their_datasets(tmp_path):
  tensors = {'bn1/gamma:0': BIAS, 'bn1/beta:0': BIAS, 'pair/a': KERNEL, 'pair/b': KERNEL}
  names = {'/bn1/gamma:0', '/bn1/beta:0', '/pair/a', '/pair/b'}
  assert files.read(_hdf5(tmp_path / 'w.h5', tensors)).keys() == names


def test_safetensors_are_read_whatever_the_file_is_called(tmp_path):
  halves = KERNEL.astype(ml_dtypes.bfloat16)
  save_file({'a': halves, 'b': BIAS, 'c': np.array(7)}, tmp_path / 'weights.h5')
  tensors = files.read(tmp_path / 'weights.h5')
  np.testing.assert_array_equal(tensors['a'].astype(np.float32), halves.astype(np.float32))
  np.testing.assert_array_equal(tensors['b'], BIAS)
  assert tensors['c'] == 7


def _refused(path, message):
  with pytest.raises(DataError, match=message) as caught:
    files.read(path)
  assert str(path) in str(caught.value)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
  _refused(tmp_path / 'none.safetensors', 'there is no such file')
  _refused(tmp_path, 'is a folder, not a file')


@pytest.mark.parametrize('content', [b'', b'<!DOCTYPE html>', b'version https://git-lfs'])
def test_other_content_is_shown(tmp_path, content):
  path = tmp_path / 'w.safetensors'
  path.write_bytes(content)
  message = _refused(path, 'neither a safetensors nor an HDF5 file')
  assert repr(content[:9]) in message


@pytest.mark.parametrize('part', [0.5, 0.99])
def test_a_file_that_is_cut_short_is_refused(tmp_path, part):
  save_file({'a': KERNEL}, tmp_path / 'a.safetensors')
  _hdf5(tmp_path / 'a.h5', {'block1_conv1/kernel': KERNEL})
  for name in ('a.safetensors', 'a.h5'):
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(part * len(content))])
    _refused(tmp_path / name, 'cannot be read')


def test_damage_inside_an_hdf5_file_is_reported(tmp_path):
  path = _hdf5(tmp_path / 'a.h5', {'block1_conv1/kernel': KERNEL})
  content = bytearray(path.read_bytes())
  content[96:2000] = b'\xff' * 1904
  path.write_bytes(content)
  _refused(path, 'cannot be read')


def test_pickles_of_pytorch_are_refused_with_the_way_to_convert_them(tmp_path):
  with zipfile.ZipFile(tmp_path / 'new.pth', 'w') as archive:
    archive.writestr('new/data.pkl', b'')
  (tmp_path / 'old.pt').write_bytes(pickle.dumps({'a': 1}, protocol=2))
  for name in ('new.pth', 'old.pt'):
    message = _refused(tmp_path / name, 'PyTorch pickle')
    assert f"torch.load('{name}'" in message
    assert 'safetensors.torch.save_file' in message


def test_archives_of_keras_are_refused_with_the_way_to_convert_them(tmp_path):
  with zipfile.ZipFile(tmp_path / 'vgg.keras', 'w') as archive:
    archive.writestr('model.weights.h5', b'')
  _refused(tmp_path / 'vgg.keras', r"load_model\('vgg.keras'\)\.save\('vgg' \+ '.h5'\)")


@pytest.mark.parity
def test_the_advice_for_pickles_works(tmp_path, monkeypatch):
  torch = pytest.importorskip('torch')
  kernel = torch.arange(6.0).reshape(2, 3)
  # Neither shared nor transposed memory can be saved as it is.
  torch.save({'a': kernel, 'b': kernel, 'c': kernel.T}, tmp_path / 'w.pth')
  lines = _refused(tmp_path / 'w.pth', 'PyTorch pickle').split('"')[1::2]
  monkeypatch.chdir(tmp_path)
  exec('\n'.join(lines), {})
  tensors = files.read(tmp_path / 'w.safetensors')
  np.testing.assert_array_equal(tensors['b'], [[0, 1, 2], [3, 4, 5]])
  np.testing.assert_array_equal(tensors['c'], [[0, 3], [1, 4], [2, 5]])
