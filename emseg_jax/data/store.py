"""Folders of chunks and their descriptions, here or behind a URL (http, gs, s3)."""

import dataclasses
import functools
import json
import os
import re
from typing import Any, Self
from urllib import parse

from emseg_jax.data.chunk_cache import CACHE_BYTES
from emseg_jax.errors import DataError

__all__ = ['Store', 'context', 'explain', 'wait']

DEEPEST, MOST_LISTED = 6, 12
WAIT_SECONDS = 600
RETRIES = {'max_retries': 4, 'initial_delay': '200ms', 'max_delay': '5s'}


@dataclasses.dataclass(frozen=True)
class Store:
  """A folder: `url` is a path here, or an address; without a slash at the end."""

  url: str

  @property
  def remote(self) -> bool:
    return '://' in self.url

  def child(self, name: str) -> Self:
    name = '/'.join(part for part in name.split('/') if part)
    if not name:
      return self
    return dataclasses.replace(self, url=f'{self.url}/{parse.quote(name) if self.remote else name}')

  def split(self) -> tuple[Self, str]:
    """The folder that this one is in, and its name there."""
    url, _, name = self.url.rpartition('/')
    return dataclasses.replace(self, url=url or '.'), parse.unquote(name) if self.remote else name

  def kvstore(self) -> dict[str, str] | str:
    """As tensorstore names it."""
    return f'{self.url}/' if self.remote else {'driver': 'file', 'path': f'{self.url}/'}

  def read_json(self, name: str) -> dict[str, Any] | None:
    """A description in this folder; None if there is no such file.

    Raises:
      DataError: it cannot be read, or is no JSON object.
    """
    data = self._read_remote(name) if self.remote else self._read_local(name)
    if data is None:
      return None
    try:
      found = json.loads(data)
    except (ValueError, RecursionError) as error:
      raise DataError(f'{self.url}/{name}: is no JSON text: {error}') from error
    if not isinstance(found, dict):
      raise DataError(f'{self.url}/{name}: is JSON, but no object: {str(found)[:40]}')
    return found

  def _read_local(self, name: str) -> bytes | None:
    try:
      with open(os.path.join(self.url, name), 'rb') as file:
        return file.read()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
      return None

  def _read_remote(self, name: str) -> bytes | None:
    import tensorstore

    future = tensorstore.KvStore.open(self.kvstore(), context=context())
    found = wait(wait(future, self.url).read(name), f'{self.url}/{name}')
    return found.value if found.state == 'value' else None

  def arrays(self) -> list[str]:
    """Names of the Zarr and N5 arrays below this folder; of none if it is remote."""
    found = []
    if self.remote:
      return found
    for folder, folders, files in os.walk(self.url):
      name = os.path.relpath(folder, self.url)
      zarr3 = 'zarr.json' in files and Store(folder).read_json('zarr.json')
      n5 = 'attributes.json' in files and Store(folder).read_json('attributes.json')
      is_array = (
        '.zarray' in files
        or (zarr3 and zarr3.get('node_type') == 'array')
        or (n5 and 'dimensions' in n5)
      )
      if is_array:
        found.append(name)
      if is_array or name.count(os.sep) >= DEEPEST:
        folders.clear()  # chunks are in there
    return sorted(found)

  def list_arrays(self) -> str:
    """For messages: what there is to choose from."""
    names = self.arrays()
    if not names:
      return ''
    more = ', ...' if len(names) > MOST_LISTED else ''
    return f', there are {", ".join(names[:MOST_LISTED])}{more}'


@functools.cache
def context() -> Any:
  """What all stores of this process share: the cache, and how long servers are asked again."""
  import tensorstore

  return tensorstore.Context(
    {
      'cache_pool': {'total_bytes_limit': CACHE_BYTES},
      'http_request_retries': RETRIES,
      'gcs_request_retries': RETRIES,
      's3_request_retries': RETRIES,
    }
  )


def wait(future: Any, where: str) -> Any:
  """The result of a tensorstore future.

  Raises:
    DataError: it failed, or took too long.
  """
  try:
    return future.result(timeout=WAIT_SECONDS)
  except TimeoutError as error:
    raise DataError(f'{where}: no answer within {WAIT_SECONDS} s') from error
  except (ValueError, OSError, NotImplementedError) as error:
    raise DataError(f'{where}: cannot be read: {explain(error)}') from error


def explain(error: Exception) -> str:
  """What tensorstore says, without its code and its notes on the source."""
  text = re.split(r' \[(?:tensorstore_spec|source locations|domain|transform)=', str(error))[0]
  return re.sub(r'^[A-Z_]+: ', '', text)
