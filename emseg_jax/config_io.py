"""Reading, overriding, checking and writing configurations.

A configuration comes from a Python file with `get_config(arg) -> Config`
(`configs/pmcanet.py:isbi2012`), from the short name of a shipped one (`pmcanet:isbi2012`), or from
the JSON that every work directory holds. Overrides are `section.field=value` strings, applied by
dotted path before validation; a value is JSON where it parses as JSON, else a string.
"""

import difflib
import importlib.util
import json
import os
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pydantic

from emseg_jax import config as config_lib
from emseg_jax.config import Config
from emseg_jax.errors import ConfigError, EmsegError, OutputError

__all__ = [
  'apply_overrides',
  'differences',
  'from_json',
  'load',
  'nearest',
  'shipped',
  'to_json',
  'write_text',
]

_UNSET = 'unset'  # how `differences` shows an option that is not there

# Fields that may change when a work directory is used again: none of them changes what is learnt.
FREE_FIELDS = (
  'data.cache_gb',
  'data.prefetch',
  'data.threads',
  'data.workers',
  'eval.checkpoint',
  'eval.split',
  'mesh',
  'postprocess',
  'predict.batch_size',
  'predict.block',
  'predict.mask',
  'predict.params',
  'predict.probabilities',
  'predict.roi',
  'run',
  'task.colours',
  'train.checkpoint_every',
  'train.keep',
  'train.log_every',
)


# Dictionaries whose order counts: the first matching group decides, and terms are summed in order.
ORDERED_FIELDS = ('loss.terms', 'optim.groups')


def nearest(name: str, known: Sequence[str]) -> str:
  """Returns "; did you mean X?" for the closest known name, or nothing."""
  close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
  return f'; did you mean {close[0]}?' if close else ''


def shipped() -> dict[str, Path]:
  """Returns the configuration files that come with the package, by short name."""
  package = Path(__file__).parent
  folders = (package / 'configs', package.parent / 'configs')  # installed, checkout
  folder = next((f for f in folders if f.is_dir()), None)
  files = sorted(folder.glob('*.py')) if folder else []
  return {f.stem: f for f in files if f.stem != '__init__'}


def load(spec: str) -> Config:
  """Loads `path.py[:arg]`, `path.json`, or the short name of a shipped configuration `name[:arg]`.

  Raises:
    ConfigError: the file is missing, is not a configuration, or holds an impossible value.
  """
  if spec.endswith('.json'):
    return from_json(Path(spec))
  name, _, arg = spec.partition(':')
  known = shipped()
  path = Path(name) if name.endswith('.py') else known.get(name)
  if path is None or not path.is_file():
    raise ConfigError(
      f'--config={spec}: no such configuration{nearest(name, list(known))} '
      f'(a .py or .json file, or one of: {", ".join(known)})'
    )
  return _run_config_file(path, arg)


def _run_config_file(path: Path, arg: str) -> Config:
  module_spec = importlib.util.spec_from_file_location(f'emseg_config_{path.stem}', path)
  if module_spec is None or module_spec.loader is None:
    raise ConfigError(f'{path}: not a Python file')
  module = importlib.util.module_from_spec(module_spec)
  try:
    module_spec.loader.exec_module(module)
    get_config = getattr(module, 'get_config', None)
    if get_config is None:
      raise ConfigError(f'{path}: has no function get_config(arg)')
    config = get_config(arg) if arg else get_config()
  except EmsegError:
    raise
  except pydantic.ValidationError as error:
    raise ConfigError(f'{path}: {describe(error)}') from error
  except Exception as error:  # whatever a user's file may raise
    what = f'{type(error).__name__}: {error}'
    raise ConfigError(f'{path}: cannot be used as a configuration: {what}') from error
  if not isinstance(config, Config):
    raise ConfigError(f'{path}: get_config returned {type(config).__name__}, not a Config')
  return config


def from_json(path: Path) -> Config:
  """Reads a configuration written by `to_json`.

  Raises:
    ConfigError: the file is missing, not JSON, or not a valid configuration.
  """
  try:
    raw = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError as error:
    raise ConfigError(f'{path}: no such file') from error
  except (OSError, ValueError, RecursionError) as error:
    raise ConfigError(f'{path}: is not a JSON configuration ({error})') from error
  try:
    return Config.model_validate(raw)
  except pydantic.ValidationError as error:
    raise ConfigError(f'{path}: {describe(error)}') from error


def to_json(config: Config) -> str:
  """Returns the complete JSON form, every default included; `from_json` reads it back."""
  return json.dumps(config.model_dump(mode='json'), indent=2) + '\n'


def apply_overrides(config: Config, overrides: Sequence[str]) -> Config:
  """Applies `section.field=value` strings in order and validates the result.

  `model.options` is an open dictionary, where `none` is a word and `null` is None; its keys are
  checked against the network by `models.create_model`. Elements of lists are addressed by index
  (`data.train.0.images=DIR`).

  Raises:
    ConfigError: a path names no field or a value is not allowed.
  """
  raw = config.model_dump()
  for override in overrides:
    path, separator, text = override.partition('=')
    if not separator:
      raise ConfigError(f'--config.{override}: needs a value, as in --config.{override}=VALUE')
    _set(raw, path, text)
  try:
    return Config.model_validate(raw)
  except pydantic.ValidationError as error:
    raise ConfigError(describe(error)) from error


def _parse(text: str) -> Any:
  lowered = text.strip().lower()
  if lowered in ('none', 'null'):
    return None
  if lowered in ('true', 'false'):
    return lowered == 'true'
  candidate = text.strip()
  if candidate.startswith('(') and candidate.endswith(')'):
    candidate = f'[{candidate[1:-1].rstrip(", ")}]'
  try:
    return json.loads(candidate)
  except (ValueError, RecursionError):  # the latter at thousands of brackets
    return text


def _set(raw: dict[str, Any], path: str, text: str) -> None:
  """Sets a leaf; fields of sections must exist, open dictionaries take new keys."""
  keys = path.split('.')
  node: Any = raw
  annotation: Any = Config
  for depth, key in enumerate(keys):
    where = '.'.join(['config', *keys[:depth]])
    if isinstance(node, list | tuple):
      if key not in map(str, range(len(node))):
        raise ConfigError(f'--config.{path}: {where} has elements 0 to {len(node) - 1}, not {key}')
      index: Any = int(key)
    elif isinstance(node, dict):
      known = list(annotation.model_fields) if _is_section(annotation) else [key]
      if key not in known:
        raise ConfigError(
          f'--config.{path}: {where} has no field {key}{nearest(key, known)} '
          f'(fields: {", ".join(known)})'
        )
      index = key
    else:
      raise ConfigError(f'--config.{path}: {where} is a single value, not a section')
    annotation = _element_annotation(annotation, key)
    if depth == len(keys) - 1:
      value = _parse(text)
      # A folder may be called 1.10 or true; a network's option may have the word none as value.
      keep = annotation is str and not isinstance(value, str | None)
      keep |= annotation in (Any, None) and text == 'none'
      node[index] = text if keep else value
      return
    child = node.get(index) if isinstance(node, dict) else node[index]
    if child is None:
      child = {}
    if isinstance(child, tuple):
      child = list(child)
    node[index] = child
    node = child


def _is_section(annotation: Any) -> bool:
  return isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel)


def _element_annotation(annotation: Any, key: str) -> Any:
  """The type found under `key` of a section, tuple or dict type; None where it is open."""
  if _is_section(annotation):
    annotation = annotation.model_fields[key].annotation
    if isinstance(annotation, types.UnionType):  # X | None
      annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    return annotation
  arguments = typing.get_args(annotation)
  if typing.get_origin(annotation) is dict:
    return arguments[1]
  return arguments[0] if arguments else None


def describe(error: pydantic.ValidationError) -> str:
  """One sentence for the first problem: the field, its value and what is allowed."""
  first = error.errors()[0]
  # A section made by itself in a configuration file does not know where it will stand.
  root = 'config' if error.title == Config.__name__ else error.title
  where = '.'.join([root, *(str(part) for part in first['loc'] if part != '[key]')])
  message = first['msg'].removeprefix('Value error, ').removeprefix('Input ')
  if first['type'] == 'extra_forbidden':
    parent, name = where.rsplit('.', 1)
    known = _fields_at(getattr(config_lib, error.title, None), first['loc'][:-1])
    return f'{parent} has no field {name}{nearest(name, known)} (fields: {", ".join(known)})'
  if first['type'] == 'missing':
    return f'{where}: is missing'
  if len(first['loc']) == 0 or isinstance(first['input'], dict):
    return f'{where}: {message}'
  shown = repr(first['input'])
  return f'{where} = {shown if len(shown) < 200 else shown[:200] + "..."}: {message}'


def _fields_at(annotation: Any, location: Sequence[int | str]) -> list[str]:
  for part in location:
    annotation = _element_annotation(annotation, str(part))
  return list(annotation.model_fields) if _is_section(annotation) else []


def differences(old: Config, new: Config) -> list[str]:
  """Lists the fields, not free to change, in which two configurations differ, with both values."""
  return list(_compare(old.model_dump(mode='json'), new.model_dump(mode='json'), ''))


def _compare(old: Any, new: Any, where: str) -> Iterator[str]:
  if where in FREE_FIELDS:
    return
  if isinstance(old, dict) and isinstance(new, dict):
    if where in ORDERED_FIELDS and list(old) != list(new) and old.keys() == new.keys():
      yield f'{where} (order {list(old)} -> {list(new)})'
    for key in sorted(old.keys() | new.keys()):
      path = f'{where}.{key}' if where else key
      yield from _compare(old.get(key, _UNSET), new.get(key, _UNSET), path)
  elif old != new:
    yield f'{where} ({old} -> {new})'


def write_text(path: Path, text: str) -> None:
  """Writes a small text file atomically.

  Raises:
    OutputError: it cannot be written.
  """
  temporary = path.with_name(path.name + '.tmp')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text(text, encoding='utf-8')
    os.replace(temporary, path)
  except OSError as error:
    raise OutputError(f'{path}: cannot be written: {error.strerror}') from error
