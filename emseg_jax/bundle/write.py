"""Writes a bundle: all of it or nothing."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from emseg_jax.bundle import card, schema
from emseg_jax.bundle.read import RECORD, Bundle
from emseg_jax.errors import OutputError
from emseg_jax.pretrained import own

__all__ = ['Form', 'check_output', 'write_bundle']

# Writes files into the folder of a bundle; the result is what model.json says of them.
Form = Callable[[Path, Bundle], dict[str, Any]]


def check_output(path: Path) -> None:
  """Makes sure that a bundle may be written there; overwrites nothing.

  Raises:
    OutputError: it is a file, or a folder that is not empty, or cannot be looked into.
  """
  try:
    if path.is_dir() and not any(path.iterdir()):
      return
    there = path.exists() or path.is_symlink()
  except OSError as error:
    raise OutputError(f'{path}: cannot be written: {error.strerror}') from error
  if there:
    raise OutputError(f'{path}: exists already; give another --output, or move it away')


def write_bundle(path: str | Path, bundle: Bundle, *, forms: Mapping[str, Form] = {}) -> Bundle:
  """Writes a folder beside `path`, and renames it when it is complete.

  Args:
    path: a new or an empty folder.
    bundle: what to write; its record's `parameters` and `forms` are made here.
    forms: name -> what writes this form.

  Returns:
    The bundle with its record as written.

  Raises:
    OutputError: the folder is there already, or cannot be written.
  """
  path = Path(path).absolute()
  check_output(path)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    temporary.mkdir(parents=True)
    bundle = _write(temporary, bundle, forms)
    os.replace(temporary, path)
  except OSError as error:
    raise OutputError(f'{path}: cannot be written: {error.strerror or error}') from error
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  return bundle


def _write(folder: Path, bundle: Bundle, forms: Mapping[str, Form]) -> Bundle:
  record, config = bundle.record, bundle.config
  about = own.About(config.data.input_channels, config.task.num_logits, config.data.normalisation)
  content = own.tensors(bundle.variables, about)
  (folder / own.PARAMS).write_bytes(content)
  digest = hashlib.sha256(content).hexdigest()
  parameters = schema.Parameters(file=own.PARAMS, sha256=digest)
  for name, array in zip((record.sample.input, record.sample.output), bundle.sample, strict=True):
    np.save(folder / name, array, allow_pickle=False)
  written = {name: form(folder, bundle) for name, form in forms.items()}
  record = record.model_copy(update={'parameters': parameters, 'forms': written})
  text = json.dumps(record.model_dump(mode='json'), indent=2) + '\n'
  (folder / RECORD).write_text(text, encoding='utf-8')
  (folder / 'README.md').write_text(card.model_card(record), encoding='utf-8')
  return Bundle(record, config, bundle.normalisation, bundle.variables, bundle.sample)
