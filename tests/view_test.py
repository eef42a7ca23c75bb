"""Volumes in neuroglancer: what is served, how it looks in a browser, and what is refused."""

import asyncio
import io
import json
import logging
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import zlib
from unittest import mock

import browser_support
import data_support
import docs_support
import format_support
import numpy as np
import pytest
import tifffile
from PIL import Image

from emseg_jax import config, view
from emseg_jax.data import phantom, volumes
from emseg_jax.errors import ConfigError, DataError

neuroglancer = pytest.importorskip('neuroglancer', reason='the extra view is not installed')

LEGEND = {0: ('inside', '#000000'), 1: ('wall', '#ff0000'), 2: ('mitochondrion', '#00ff00')}
SIZE_NM = (30.0, 8.0, 4.0)


@pytest.fixture
def pair(tmp_path):
  """Paths and arrays [Z, Y, X] of an image of known voxel size and its labels."""
  image, labels = phantom.make_volume(shape=(24, 96, 128), seed=3)
  resolution = (1 / (SIZE_NM[2] / 1000), 1 / (SIZE_NM[1] / 1000))  # pixels per micrometre, (x, y)
  metadata = {'axes': 'ZYX', 'unit': 'um', 'spacing': SIZE_NM[0] / 1000}
  paths = tmp_path / 'image.tif', tmp_path / 'labels.tif'
  tifffile.imwrite(paths[0], image, imagej=True, resolution=resolution, metadata=metadata)
  tifffile.imwrite(paths[1], labels, photometric='minisblack')
  return *paths, image, labels


def _state():
  """What the only viewer of the running server shows, as JSON, and the keys of its volumes."""
  (viewer,) = neuroglancer.server.global_server.viewers.values()
  urls = {layer.name: layer.layer.source[0].url for layer in viewer.state.layers}
  return viewer.state.to_json(), {k: u.removeprefix('python://volume/') for k, u in urls.items()}


def _fetch(url, key, start, stop, factor=(1, 1, 1)):
  """A box as the browser gets it; the axes are x, y, z."""
  address, _ = url.split('/v/')
  parts = [','.join(str(n) for n in place) for place in (factor, start, stop)]
  reply = urllib.request.urlopen(f'{address}/neuroglancer/npz/{key}/{"/".join(parts)}')
  return np.load(io.BytesIO(zlib.decompress(reply.read())))


def test_boxes_of_image_and_labels_come_as_they_are_stored(pair):
  with view.serve(pair[0], {'truth': pair[1]}) as url:
    _, keys = _state()
    for key, array in ((keys['image'], pair[2]), (keys['truth'], pair[3])):
      box = _fetch(url, key, (5, 10, 3), (60, 50, 9))
      np.testing.assert_array_equal(box, array[3:9, 10:50, 5:60].T)
    # Segments are never averaged: every second voxel.
    coarse = _fetch(url, keys['truth'], (0, 0, 0), (64, 48, 12), factor=(2, 2, 2))
    np.testing.assert_array_equal(coarse, pair[3][::2, ::2, ::2].T)


def test_colour_and_odd_types_are_sent_as_something_that_webgl_has(tmp_path):
  rgb = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
  tifffile.imwrite(tmp_path / 'rgb.tif', rgb, photometric='rgb')
  half = np.linspace(0, 1, 40, dtype=np.float16).reshape(2, 4, 5)
  ids = (np.arange(40).reshape(2, 4, 5) * 100).astype(np.int16)
  paths = {'chance': tmp_path / 'half.tif', 'ids': tmp_path / 'ids.tif'}
  for path, array in zip(paths.values(), (half, ids), strict=True):
    tifffile.imwrite(path, array, photometric='minisblack')
  with view.serve(tmp_path / 'rgb.tif', paths) as url:
    state, keys = _state()
    colours = _fetch(url, keys['image'], (0, 0, 0, 0), (5, 4, 2, 3), (1, 1, 1, 1))
    np.testing.assert_array_equal(colours, rgb.transpose(2, 1, 0, 3))
    chance = _fetch(url, keys['chance'], (0, 0, 0), (5, 4, 2))
    assert chance.dtype == np.float32
    np.testing.assert_array_equal(chance, half.astype(np.float32).T)
    segments = _fetch(url, keys['ids'], (0, 0, 0), (5, 4, 2))
    assert segments.dtype == np.uint16
    np.testing.assert_array_equal(segments, ids.T)
  image, chance, segments = state['layers']
  assert 'emitRGB(' in image['shader']
  assert 'emitRGBA(' in chance['shader']
  assert chance['opacity'] == 0.5
  assert [layer['type'] for layer in (image, chance, segments)] == [
    'image',
    'image',
    'segmentation',
  ]


def test_size_contrast_colours_and_panels(pair):
  with view.serve(pair[0], {'truth': pair[1]}, legend=LEGEND):
    state, _ = _state()
  # In metres, by the SI, (x, y, z).
  scales = {axis: scale for axis, (scale, unit) in state['dimensions'].items() if unit == 'm'}
  assert scales == pytest.approx({'x': 4e-9, 'y': 8e-9, 'z': 30e-9})
  assert state['layout'] == '4panel'
  assert state['position'] == [64, 48, 12]
  image, truth = state['layers']
  low, high = np.percentile(pair[2][12], (1, 99))  # uint8: outwards to whole numbers
  shown = image['shaderControls']['normalized']['range']
  assert shown == [np.floor(low), np.ceil(high)]
  assert truth['segments'] == ['1', '2']
  assert truth['segmentColors'] == {'0': '#000000', '1': '#ff0000', '2': '#00ff00'}


def test_a_single_image_of_unknown_size_has_one_panel_and_no_unit(tmp_path):
  path = tmp_path / 'plain.png'
  Image.fromarray(np.full((6, 8), 7, np.uint8)).save(path)
  with view.serve(path, {}):
    state, _ = _state()
  assert state['layout'] == 'xy'
  assert state['dimensions'] == {axis: [1, ''] for axis in 'xyz'}
  # Black and white must differ in an image of one grey value.
  assert state['layers'][0]['shaderControls']['normalized']['range'] == [7, 8]


def test_an_unknown_side_is_taken_as_that_of_a_cube():
  volume = volumes.ArrayVolume(np.zeros((2, 3, 4), np.uint8), voxel_size_zyx=(None, 5.0, 4.0))
  assert view._scales({'image': volume}) == ([4.0, 5.0, 4.0], 'nm')


def test_labels_with_values_outside_the_legend_keep_their_own_colours(pair, tmp_path):
  instances = tmp_path / 'instances.tif'
  tifffile.imwrite(instances, pair[3].astype(np.uint16) * 1000, photometric='minisblack')
  with view.serve(pair[0], {'cells': instances}, legend=LEGEND):
    state, _ = _state()
  cells = state['layers'][1]
  assert 'segments' not in cells  # nothing chosen: all are shown
  assert len(set(cells['segmentColors'].values())) == 9


def test_a_legend_has_the_values_of_the_files():
  task = config.Task(classes=('inside', 'wall'), colours=('#112233', '#445566'), ignore_value=7)
  data = config.Data(label_mapping={0: 1, 255: 0})
  found = view.legend(config.Config(task=task, data=data))
  expected = {0: ('wall', '#445566'), 255: ('inside', '#112233'), 7: ('not scored', '#808080')}
  assert found == expected


def test_sections_are_decoded_once_and_large_volumes_in_one_direction(monkeypatch, pair):
  volume = volumes.ArrayVolume(pair[2])
  read = []
  monkeypatch.setattr(volume, 'section', lambda i: read.append(i) or pair[2][i])
  array = view._Array(volume, pair[2].shape, volume.dtype)
  for x in (0, 32, 64):
    assert array[x : x + 32, 0:32, 4:6].shape == (32, 32, 2)
  assert read == [4, 5]
  monkeypatch.setattr(view, 'CACHE_BYTES', pair[2].nbytes - 1)
  with view.serve(pair[0], {}) as url:
    state, keys = _state()
    address = f'{url.split("/v/")[0]}/neuroglancer/info/{keys["image"]}'
    assert json.load(urllib.request.urlopen(address))['chunkLayout'] == 'flat'
  assert state['layout'] == 'xy'


def test_meshes_are_made_of_small_volumes_only(monkeypatch, pair):
  with view.serve(pair[0], {'truth': pair[1]}, legend=LEGEND) as url:
    state, keys = _state()
    address = f'{url.split("/v/")[0]}/neuroglancer/mesh/{keys["truth"]}/2'
    assert len(urllib.request.urlopen(address).read()) > 1000
  assert 'subsources' not in state['layers'][1]['source'][0]
  monkeypatch.setattr(view, 'MOST_MESHED', pair[3].size - 1)
  with view.serve(pair[0], {'truth': pair[1]}):
    state, _ = _state()
  assert state['layers'][1]['source'][0]['subsources'] == {'meshes': False}


# ---- beginning, end, and what is refused --------------------------------------------------------


def test_view_prints_the_address_listens_here_only_and_ends(pair, capsys):
  port, accepted = _free_port(), []

  def should_stop():
    accepted[:] = [_accepts('127.0.0.1', port), _accepts('127.0.0.2', port)]
    return True

  view.view(pair[0], {}, port=port, should_stop=should_stop)
  assert accepted == [True, False]  # 127.0.0.2 is this machine, too, but another interface
  assert capsys.readouterr().out.startswith(f'http://127.0.0.1:{port}/v/')
  assert not _accepts('127.0.0.1', port)


def _free_port():
  with socket.socket() as there:
    there.bind(('127.0.0.1', 0))
    return there.getsockname()[1]


def _accepts(host, port):
  with socket.socket() as there:
    return there.connect_ex((host, port)) == 0


def test_ctrl_c_without_a_flag_stops_the_server(monkeypatch, pair):
  def interrupt(seconds):
    raise KeyboardInterrupt

  monkeypatch.setattr(view.time, 'sleep', interrupt)
  with pytest.raises(KeyboardInterrupt):
    view.view(pair[0], {})
  assert not neuroglancer.server.is_server_running()


def test_a_port_in_use_is_named(pair):
  with socket.socket() as there:
    there.bind(('127.0.0.1', 0))
    there.listen()
    port = there.getsockname()[1]
    with (
      pytest.raises(ConfigError, match=f'port {port} of 127.0.0.1'),
      view.serve(pair[0], {}, port=port),
    ):
      pass


def test_sizes_that_differ_are_named(pair, tmp_path):
  part = tmp_path / 'part.tif'
  tifffile.imwrite(part, pair[3][:20], photometric='minisblack')
  message = r'part\.tif: is 20 x 96 x 128 \(z y x\), but .*image\.tif is 24 x 96 x 128;'
  with pytest.raises(DataError, match=message), view.serve(pair[0], {'part': part}):
    pass


def test_a_folder_of_unequal_images_is_refused(tmp_path):
  folder = tmp_path / 'images'
  named = {'a': data_support.plain(1, (4, 6)), 'b': data_support.plain(1, (5, 6))}
  data_support.write_folder(folder, named)
  message = r'images: its images are of 2 sizes, 4 x 6 to 5 x 6 \(y x\)'
  with pytest.raises(DataError, match=message), view.serve(folder, {}):
    pass


def test_a_layer_named_as_the_image_is_refused(pair):
  with pytest.raises(ConfigError, match="named 'image'"), view.serve(pair[0], {'image': pair[1]}):
    pass


def test_a_missing_extra_is_named(monkeypatch, pair):
  monkeypatch.setitem(sys.modules, 'neuroglancer', None)
  with pytest.raises(ConfigError, match=r'pip install "\.\[view\]"'), view.serve(pair[0], {}):
    pass


def test_damage_found_while_looking_is_said_and_the_rest_stays_visible(tmp_path, caplog):
  array = np.ones((4, 6, 8), np.float32)
  array[0, 0, 0] = np.nan
  tifffile.imwrite(tmp_path / 'torn.tif', array, photometric='minisblack')
  with view.serve(tmp_path / 'torn.tif', {}) as url, caplog.at_level(logging.WARNING):
    _, keys = _state()
    with pytest.raises(urllib.error.HTTPError, match='400'):
      _fetch(url, keys['image'], (0, 0, 0), (8, 6, 4))
    assert 'section 0: 1 of 48 values are NaN' in caplog.text
    assert _fetch(url, keys['image'], (0, 0, 1), (8, 6, 4)).min() == 1


def test_no_jax_is_started():
  code = 'import sys, emseg_jax.view; sys.exit("jax" in sys.modules)'
  subprocess.run([sys.executable, '-c', code], check=True)


def test_the_lines_for_napari_show_both_volumes_at_their_size(tmp_path, monkeypatch):
  (code,) = [b.text for b in docs_support.blocks('docs/viewing.md') if 'napari' in b.text]
  shown = mock.MagicMock()
  monkeypatch.setitem(sys.modules, 'napari', shown)
  monkeypatch.chdir(tmp_path)
  arrays = [format_support.values(3, 4, 5, seed=seed) for seed in (0, 1)]
  for name, array in zip(('volume.zarr', 'labels.zarr'), arrays, strict=True):
    format_support.write_ome_zarr(tmp_path / name, array)
  exec(compile(code, 'docs/viewing.md', 'exec'), {})
  viewer = shown.Viewer.return_value
  for add, array in zip((viewer.add_image, viewer.add_labels), arrays, strict=True):
    np.testing.assert_array_equal(add.call_args.args[0], array)
    assert add.call_args.kwargs['scale'] == pytest.approx(format_support.VOXEL_SIZE)
  shown.run.assert_called_once()


# ---- in a browser -------------------------------------------------------------------------------


@pytest.mark.skipif(browser_support.CHROMIUM is None, reason='no Chromium')
def test_a_browser_without_internet_shows_image_and_labels(pair, tmp_path):
  asyncio.run(asyncio.wait_for(_look(pair, tmp_path), timeout=120))


async def _look(pair, tmp_path):
  async with browser_support.open_page(tmp_path / 'profile') as page:
    with view.serve(pair[0], {'truth': pair[1]}, legend=LEGEND) as url:
      await page.go(url)
      while not _shown(await page.picture()):
        await asyncio.sleep(1)
      assert page.errors() == []
    # The server has ended although the page is still open.
    assert not neuroglancer.server.is_server_running()


def _shown(picture):
  """Whether there are grey voxels, and some under either colour, in the upper left panel."""
  red, green, blue = np.moveaxis(picture[60:340, 110:490].astype(int), -1, 0)
  wall, mitochondrion = red > green + 60, green > red + 60
  plain = (red == green) & (green == blue)
  return min(wall.mean(), mitochondrion.mean()) > 0.01 and len(np.unique(red[plain])) > 50
