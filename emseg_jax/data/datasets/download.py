"""Public files over http: to a temporary name, checked, then renamed; zip archives unpacked.

TFDS's own download manager unpacks with TensorFlow, which this package does without.
"""

import contextlib
import hashlib
import http.client
import logging
import os
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from emseg_jax.data.datasets.published import Download
from emseg_jax.errors import DataError

__all__ = ['CHECKSUMS', 'fetch', 'unpack']

LOGGER = logging.getLogger('emseg_jax')
CHECKSUMS = 'checksums.txt'  # in the form of sha256sum, so that `sha256sum -c` reads it
TIMEOUT = 60.0  # seconds without a byte
CHUNK = 1 << 20


def fetch(download: Download, folder: Path) -> Path:
  """Downloads a file into a folder, unless it is there already, and checks it.

  The sha256 of what was downloaded is added to `CHECKSUMS` in the folder. If no checksum was
  published, an entry there is what the file must have.

  Raises:
    DataError: the server cannot be reached or refuses, the transfer is cut short, or the checksum
      is another one.
  """
  if not download.url.startswith(('http://', 'https://')):
    raise DataError(f'{download.url}: only http and https are downloaded')
  target = folder / download.name
  if not target.exists():
    LOGGER.info('%s -> %s', download.url, target)
    folder.mkdir(parents=True, exist_ok=True)
    with _temporary(folder) as temporary:
      _transfer(download.url, temporary)
      _check(download, temporary, folder)
      os.replace(temporary, target)
  else:
    _check(download, target, folder)
  return target


def unpack(archive: Path, folder: Path) -> None:
  """Unpacks a zip archive into a folder; nothing is left of an archive that is damaged.

  Raises:
    DataError: it is damaged, or not a zip archive.
  """
  temporary = Path(tempfile.mkdtemp(prefix='.unpacking-', dir=folder))
  try:
    try:
      with zipfile.ZipFile(archive) as file:
        file.extractall(temporary)  # drops absolute paths and '..'
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
      raise DataError(f'{archive}: is no zip archive or is damaged ({error}); remove it') from error
    for entry in temporary.iterdir():
      if not (folder / entry.name).exists():
        entry.rename(folder / entry.name)
  finally:
    shutil.rmtree(temporary)


@contextlib.contextmanager
def _temporary(folder: Path):
  handle, name = tempfile.mkstemp(prefix='.downloading-', dir=folder)
  os.close(handle)
  try:
    yield Path(name)
  finally:
    Path(name).unlink(missing_ok=True)


def _transfer(url: str, target: Path) -> None:
  try:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response, target.open('wb') as file:
      expected = response.headers.get('Content-Length')
      shutil.copyfileobj(response, file, CHUNK)
      received = file.tell()
  except urllib.error.HTTPError as error:
    raise DataError(f'{url}: the server answers {error.code} {error.reason}') from error
  except urllib.error.URLError as error:
    raise DataError(f'{url}: cannot be downloaded: {error.reason}') from error
  except (OSError, http.client.HTTPException) as error:
    raise DataError(f'{url}: the download broke off: {error!r}') from error
  if expected is not None and received != int(expected):
    raise DataError(f'{url}: the download broke off after {received} of {expected} bytes')


def _check(download: Download, file: Path, folder: Path) -> None:
  digests = {kind: _digest(file, kind) for kind in ('sha256', 'md5')}
  record = folder / CHECKSUMS
  lines = record.read_text(encoding='utf-8').splitlines() if record.exists() else []
  recorded = {name: digest for digest, _, name in (line.partition('  ') for line in lines)}
  kind, _, expected = (download.checksum or '').partition(':')
  if not expected:
    kind, expected = 'sha256', recorded.get(download.name)
  if expected and digests[kind] != expected:
    origin = 'published' if download.checksum else f'recorded in {record}'
    raise DataError(
      f'{folder / download.name}: its {kind} is {digests[kind]}, but {expected} is {origin}; '
      'remove the file and download it again, or ask its authors what changed'
    )
  if recorded.get(download.name) != digests['sha256']:
    recorded[download.name] = digests['sha256']
    record.write_text(''.join(f'{d}  {n}\n' for n, d in recorded.items()), encoding='utf-8')


def _digest(file: Path, kind: str) -> str:
  with file.open('rb') as stream:
    return hashlib.file_digest(stream, kind).hexdigest()
