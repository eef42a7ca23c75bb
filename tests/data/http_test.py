"""Stores behind an address, served by the standard library on this machine."""

import contextlib
import functools
import http.server
import threading
import time

import format_support
import numpy as np
import pytest
from format_support import VOXEL_SIZE, values

from emseg_jax.config import Reading
from emseg_jax.data import store, volumes
from emseg_jax.errors import DataError


class Handler(http.server.SimpleHTTPRequestHandler):
  def log_message(self, *arguments):
    self.server.asked.append(self.path)


@pytest.fixture
def server(tmp_path):
  handler = functools.partial(Handler, directory=tmp_path)
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as served:
    served.asked = []
    thread = threading.Thread(target=served.serve_forever, kwargs={'poll_interval': 0.01})
    thread.start()
    served.url = f'http://127.0.0.1:{served.server_port}'
    yield served
    with contextlib.suppress(OSError):
      served.shutdown()
    thread.join()


STORES = {
  'a.zarr': ('zarr', format_support.write_zarr),
  'v3.zarr': ('zarr', functools.partial(format_support.write_zarr, version=3)),
  'ome.zarr': ('zarr', format_support.write_ome_zarr),
  'a.n5': ('n5', format_support.write_n5),
  'precomputed': ('precomputed', format_support.write_precomputed),
}


@pytest.mark.parametrize('name', list(STORES))
def test_stores_are_read_through_http_chunk_by_chunk(tmp_path, server, name):
  array = values(4, 6, 8)
  kind, write = STORES[name]
  write(tmp_path / name, array)
  volume = volumes.open_volume(f'{server.url}/{name}')
  assert (volume.kind, volume.axes, volume.files) == (kind, 'ZYX', ())
  assert volume.names[0].startswith(name.split('.')[0])
  assert volume.voxel_size_zyx == (VOXEL_SIZE if name[0] in 'op' else None)
  server.asked.clear()
  np.testing.assert_array_equal(volume.box((0, 0, 0), (2, 3, 4)), array[:2, :3, :4])
  assert len(server.asked) == 1
  np.testing.assert_array_equal(volume[:], array)


def test_arrays_are_named_and_levels_chosen_behind_an_address(tmp_path, server):
  array = values(4, 6, 8)
  format_support.write_ome_zarr(tmp_path / 'a.zarr', array)
  for path, reading in (
    ('a.zarr', Reading(level=1)), ('a.zarr:/1', Reading()), ('a.zarr/1', Reading())
  ):  # fmt: skip
    volume = volumes.open_volume(f'{server.url}/{path}', reading=reading)
    np.testing.assert_array_equal(volume[:], array[::2, ::2, ::2])
    assert volume.voxel_size_zyx == (60.0, 10.0, 8.0)


def test_missing_chunks_and_addresses_are_errors(tmp_path, server):
  path = format_support.write_zarr(tmp_path / 'a.zarr', values(4, 6, 8))
  (path / '1.1.1').unlink()
  volume = volumes.open_volume(f'{server.url}/a.zarr', reading=Reading(missing='error'))
  with pytest.raises(DataError, match=r'a\.zarr: .*1\.1\.1 is missing; copy it again'):
    volume.section(3)
  with pytest.raises(DataError, match=r'/nothing: has no Zarr, N5 or precomputed array here$'):
    volumes.open_volume(f'{server.url}/nothing')
  with pytest.raises(DataError, match=r'ftp://host/a\.zarr: cannot be read'):
    volumes.open_volume('ftp://host/a.zarr')


def test_a_server_that_is_gone_is_an_error_after_some_seconds(tmp_path, server, monkeypatch):
  monkeypatch.setattr(store, 'RETRIES', {'max_retries': 1, 'initial_delay': '10ms'})
  store.context.cache_clear()
  format_support.write_zarr(tmp_path / 'a.zarr', values(4, 6, 8))
  volume = volumes.open_volume(f'{server.url}/a.zarr', reading=Reading(missing='error'))
  server.shutdown()
  server.server_close()
  start = time.monotonic()
  with pytest.raises(DataError, match=r'a\.zarr: cannot be read: .*connect'):
    volume.section(0)
  with pytest.raises(DataError, match=r'a\.zarr/info: cannot be read: .*connect'):
    volumes.open_volume(f'{server.url}/a.zarr')
  assert time.monotonic() - start < 10
  store.context.cache_clear()
