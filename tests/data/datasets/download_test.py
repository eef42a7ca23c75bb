"""Downloads over the loopback: what arrives whole is kept and recorded, anything else is not."""

import hashlib
import http.server
import threading
import zipfile

import datasets_support as support
import pytest

from emseg_jax import prepare
from emseg_jax.data import tfds_volume
from emseg_jax.data.datasets import download
from emseg_jax.data.datasets.published import Download
from emseg_jax.errors import DataError

BYTES = bytes(range(256)) * 1000


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
  monkeypatch.setenv('no_proxy', '*')


@pytest.fixture
def server(tmp_path):
  folder = tmp_path / 'served'
  folder.mkdir()
  (folder / 'data.bin').write_bytes(BYTES)
  with support.serve(folder) as (url, requested):
    yield url, requested, folder


def names(folder):
  return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize('kind', ['sha256', 'md5', None])
def test_a_file_is_fetched_once_and_its_checksum_recorded(kind, server, tmp_path):
  url, requested, _ = server
  checksum = kind and f'{kind}:{hashlib.new(kind, BYTES).hexdigest()}'
  for _ in range(2):
    file = download.fetch(Download(f'{url}/data.bin?download=1', checksum), tmp_path / 'new')
    assert file.read_bytes() == BYTES
  assert requested == ['/data.bin?download=1']
  record = (tmp_path / 'new' / 'checksums.txt').read_text()
  assert record == f'{hashlib.sha256(BYTES).hexdigest()}  data.bin\n'
  assert names(tmp_path / 'new') == ['checksums.txt', 'data.bin']


def test_another_checksum_is_refused_and_the_file_not_kept(server, tmp_path):
  url, _, _ = server
  with pytest.raises(DataError) as caught:
    download.fetch(Download(f'{url}/data.bin', 'sha256:' + '0' * 64), tmp_path / 'new')
  for expected in ('data.bin: its sha256 is', hashlib.sha256(BYTES).hexdigest(), '0' * 64):
    assert expected in str(caught.value)
  assert names(tmp_path / 'new') == []


def test_a_file_without_published_checksum_is_held_against_the_first_one(server, tmp_path):
  url, _, folder = server
  download.fetch(Download(f'{url}/data.bin'), tmp_path / 'new').unlink()
  (folder / 'data.bin').write_bytes(BYTES[:-1])
  with pytest.raises(DataError, match=r'is recorded in .*checksums\.txt; remove the file'):
    download.fetch(Download(f'{url}/data.bin'), tmp_path / 'new')
  assert names(tmp_path / 'new') == ['checksums.txt']


def test_refusal_and_absence_of_the_server_are_told_apart(server, tmp_path):
  url, _, _ = server
  with pytest.raises(DataError, match=r'/none.zip: the server answers 404 File not found'):
    download.fetch(Download(f'{url}/none.zip'), tmp_path / 'new')
  with pytest.raises(DataError, match=r'cannot be downloaded: .*[Rr]efused'):
    download.fetch(Download('http://127.0.0.1:9/a.zip'), tmp_path / 'new')
  with pytest.raises(DataError, match=r'^file:///etc/hosts: only http and https'):
    download.fetch(Download('file:///etc/hosts'), tmp_path / 'new')
  assert names(tmp_path / 'new') == []


def test_a_transfer_that_breaks_off_is_not_kept(tmp_path):
  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      self.send_response(200)
      self.send_header('Content-Length', '1000')
      self.end_headers()
      self.wfile.write(b'x' * 10)

    def log_message(self, *arguments):
      pass

  with http.server.HTTPServer(('127.0.0.1', 0), Handler) as server:
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    with pytest.raises(DataError, match='broke off'):
      download.fetch(Download(f'http://127.0.0.1:{server.server_port}/a.zip'), tmp_path / 'new')
    thread.join()
  assert names(tmp_path / 'new') == []


def test_archives_stay_in_their_folder_and_damaged_ones_leave_nothing(tmp_path):
  archive = tmp_path / 'a.zip'
  with zipfile.ZipFile(archive, 'w') as file:
    file.writestr('../evil.txt', 'x')
    file.writestr('inner/good.txt', 'y' * 5000)
  (tmp_path / 'into').mkdir()
  download.unpack(archive, tmp_path / 'into')
  assert names(tmp_path / 'into') == ['evil.txt', 'inner']
  assert not (tmp_path / 'evil.txt').exists()
  archive.write_bytes(archive.read_bytes()[:-30])
  (tmp_path / 'other').mkdir()
  with pytest.raises(DataError, match=r'a\.zip: is no zip archive or is damaged'):
    download.unpack(archive, tmp_path / 'other')
  assert names(tmp_path / 'other') == []


def _serve_isbi2012(monkeypatch, server, *, checksum=None):
  """The challenge's archive on the loopback: stacks in a folder."""
  url, requested, folder = server
  written = support.write('isbi2012', folder / 'unzipped')
  with zipfile.ZipFile(folder / 'ISBI-2012-challenge.zip', 'w') as file:
    for path in (folder / 'unzipped').iterdir():
      file.write(path, f'ISBI-2012-challenge/{path.name}')
  item = Download(f'{url}/ISBI-2012-challenge.zip', checksum, unpack=True)
  support.shrink(monkeypatch, 'isbi2012', downloads=(item,))
  return requested, written


def test_a_data_set_is_downloaded_unpacked_and_built(server, tmp_path, monkeypatch):
  requested, written = _serve_isbi2012(monkeypatch, server)
  for output in (tmp_path / 'out', tmp_path / 'out2'):
    prepare.prepare('isbi2012', source=tmp_path / 'new', output=output)
  assert requested == ['/ISBI-2012-challenge.zip']
  images, labels = tfds_volume.open_dataset(f'tfds://isbi2012?split=test&dir={tmp_path}/out')
  assert (images[:] == written['test'][0]).all()
  assert (labels[:] == written['test'][1]['label']).all()


def test_files_that_are_there_are_not_downloaded(server, tmp_path, monkeypatch):
  requested, _ = _serve_isbi2012(monkeypatch, server)
  support.write('isbi2012', tmp_path / 'own')
  prepare.prepare('isbi2012', source=tmp_path / 'own', output=tmp_path / 'out')
  assert requested == []


def test_a_failed_download_says_how_to_do_without(server, tmp_path, monkeypatch):
  _serve_isbi2012(monkeypatch, server, checksum='sha256:' + '0' * 64)
  with pytest.raises(DataError) as caught:
    prepare.prepare('isbi2012', source=tmp_path / 'new', output=tmp_path / 'out')
  for expected in ('its sha256 is', 'Otherwise: Get', 'train-labels.tif', 'imagej.net/events'):
    assert expected in str(caught.value)
  assert names(tmp_path / 'out') == []
