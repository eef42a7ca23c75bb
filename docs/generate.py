"""Writes what is read from the source: config.md, options.md and a picture of each network.

    python docs/generate.py

config.md lists every field of the configuration; options.md the options of networks, losses and
voxel weights, which the configuration passes on. Types, defaults and ranges come from the
annotations, meanings from the fields' descriptions and the docstrings. The pictures in diagrams/
are drawn from the traced networks, see stages.py. tests/docs_test.py holds the committed files
against what this writes.
"""

import dataclasses
import functools
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import annotated_types
import drawing
import pydantic
import stages
from pydantic.fields import FieldInfo

from emseg_jax import config, losses, models, zoo
from emseg_jax.losses import terms

__all__ = ['config_page', 'describe_type', 'diagram', 'options_page', 'sections_of', 'write']

FOLDER = Path(__file__).parent
COMMAND = 'python docs/generate.py'
WORDS = {int: 'integer', float: 'number', str: 'text', bool: 'true or false'}
SIGNS = {
  annotated_types.Gt: ('gt', '>'),
  annotated_types.Ge: ('ge', '>='),
  annotated_types.Lt: ('lt', '<'),
  annotated_types.Le: ('le', '<='),
}
Place = tuple[str, type[pydantic.BaseModel]]


def describe_type(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
  """'integer > 0', '`sgd`, `adam`', 'integer > 0, 2 to 3 of them', ... of a type and its limits."""
  origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
  if origin is typing.Annotated:
    return describe_type(arguments[0], (*_limits(arguments[1:]), *metadata))
  if origin in (typing.Union, types.UnionType):
    parts = [describe_type(a, metadata) for a in arguments if a is not type(None)]
    compound = any(' of: ' in part or ' -> ' in part for part in parts)
    return ('; or ' if compound else ' or ').join(parts + ['none'] * (type(None) in arguments))
  if origin is Literal:
    return ', '.join(f'`{value}`' for value in arguments)
  if origin is tuple or origin in (list, typing.get_origin(typing.Sequence[int])):
    return _describe_tuple(arguments, metadata)
  if origin is dict:
    return f'{describe_type(arguments[0])} -> {describe_type(arguments[1])}'
  if _is_section(annotation):
    return f'[{annotation.__name__}](#{annotation.__name__.lower()})'
  return ' '.join([WORDS.get(annotation, 'any value'), *_ranges(metadata)])


def _describe_tuple(arguments: tuple[Any, ...], metadata: tuple[Any, ...]) -> str:
  inner = describe_type(arguments[0])
  if len(arguments) > 1 and arguments[1] is not Ellipsis:
    return f'{len(arguments)} of: {inner}'
  least = next((m.min_length for m in metadata if hasattr(m, 'min_length')), 0)
  most = next((m.max_length for m in metadata if hasattr(m, 'max_length')), None)
  count = f'{least} or more' if most is None else f'{least} to {most}'
  return f'{count} of: {inner}'


def _limits(metadata: tuple[Any, ...]) -> tuple[Any, ...]:
  """The single limits in what an annotation carries; pydantic packs several into one FieldInfo."""
  packed = [m.metadata if isinstance(m, FieldInfo) else [m] for m in metadata]
  return tuple(limit for group in packed for limit in group)


def _ranges(metadata: tuple[Any, ...]) -> Iterator[str]:
  found = []
  for limit in metadata:
    for kind, (attribute, sign) in SIGNS.items():
      if isinstance(limit, kind):
        value = getattr(limit, attribute)
        found.append(f'{sign} {value:g}' if isinstance(value, float) else f'{sign} {value}')
    if isinstance(limit, annotated_types.MultipleOf):
      found.append(f'a multiple of {limit.multiple_of}')
  if found:
    yield ' and '.join(found)


def _is_section(annotation: Any) -> bool:
  return isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel)


def _inner_sections(annotation: Any, path: str) -> Iterator[Place]:
  """Sections in a field's type, each with the path at which its own fields are set."""
  if _is_section(annotation):
    yield path, annotation
    return
  arguments = typing.get_args(annotation)
  if typing.get_origin(annotation) is dict:
    path = f'{path}.NAME'
  elif typing.get_origin(annotation) is tuple:
    path = f'{path}.N'
  for argument in arguments:
    yield from _inner_sections(argument, path)


def sections_of(
  section: type[pydantic.BaseModel], path: str = ''
) -> dict[type[pydantic.BaseModel], list[str]]:
  """Every section inside a section, in reading order, and where its fields are found."""
  places: dict[type[pydantic.BaseModel], list[str]] = {}
  for name, field in section.model_fields.items():
    at = f'{path}.{name}' if path else name
    for where, inner in _inner_sections(field.annotation, at):
      known = inner in places
      places.setdefault(inner, []).append(where)
      if not known:
        for deeper, found in sections_of(inner, where).items():
          places.setdefault(deeper, []).extend(found)
  return places


def config_page() -> str:
  """The text of config.md."""
  lines = [
    '# Every field of the configuration',
    '',
    f'Written by `{COMMAND}` from the configuration itself.',
    '',
    'A field is set in a configuration file, in its JSON form, or as',
    '`--config.SECTION.FIELD=VALUE`. Elements of lists are addressed by number (`data.train.0`),',
    'those of tables by name (`loss.terms.dice`). Where a value is not allowed, the message says',
    'what is. `none`, in the meanings `None`, is no value. [options.md](options.md) has what',
    '`model.options` and the options of loss terms may hold.',
  ]
  for section, places in sections_of(config.Config).items():
    top = '.' not in places[0]
    where = ', '.join(f'`{place}`' for place in places)
    lines += ['', f'{"##" if top else "###"} {section.__name__}', '']
    lines += [f'{where}: {_lower(inspect.getdoc(section) or "")}', '']
    lines += _table(('field', 'type', 'default', 'meaning'), map(_row, *_fields(section)))
  return '\n'.join(lines) + '\n'


def _fields(section: type[pydantic.BaseModel]) -> tuple[list[str], list[FieldInfo]]:
  return list(section.model_fields), list(section.model_fields.values())


def _row(name: str, field: FieldInfo) -> tuple[str, ...]:
  annotation = field.annotation
  default = ''
  if not _is_section(annotation):
    default = _default(
      pydantic.TypeAdapter(annotation).dump_python(
        field.default, mode='json', exclude_defaults=True
      )
    )
  kind = describe_type(annotation, _limits(tuple(field.metadata)))
  return f'`{name}`', kind, default, field.description or ''


def options_page() -> str:
  """The text of options.md."""
  lines = [
    '# Options of networks, losses and voxel weights',
    '',
    f'Written by `{COMMAND}` from the source.',
    '',
    '## Networks',
    '',
    'Set as `--config.model.options.NAME=VALUE`; a tuple is a list, as in `[1,2,3,6]`.',
  ]
  for name, cls in models.MODELS.items():
    docs = [inspect.cleandoc(base.__doc__ or '') for base in reversed(cls.__mro__)]
    texts = {k: v for doc in docs for k, v in _described(doc, 'Attributes').items()}
    rows = [
      (f'`{f.name}`', describe_type(f.type), _default(f.default), texts.get(f.name, ''))
      for f in dataclasses.fields(cls)
      if f.name not in ('num_classes', 'dtype', 'name', 'parent')
    ]
    lines += ['', f'### {name}', '', *_table(('option', 'type', 'default', 'meaning'), rows)]
  lines += [
    '',
    '## Losses',
    '',
    'Set as `--config.loss.terms.TERM.options.NAME=VALUE`. A term is named after its loss, or has',
    'any name and `loss` says which it is.',
  ]
  for name, kind in losses.LOSSES.items():
    lines += _function(name, kind.function)
  lines += ['', '## Voxel weights', '', 'Set as `--config.loss.terms.TERM.weighting.name=NAME`.']
  for name, function in losses.WEIGHTINGS.items():
    lines += _function(name, function)
  return '\n'.join(lines) + '\n'


def _function(name: str, function: Callable[..., Any]) -> list[str]:
  doc = inspect.getdoc(function) or ''
  texts = _described(doc, 'Args')
  rows = [
    (f'`{p.name}`', describe_type(p.annotation), _default(p.default), texts.get(p.name, ''))
    for p in inspect.signature(function).parameters.values()
    if p.kind is p.KEYWORD_ONLY and p.name not in terms._SUPPLIED
  ]
  table = _table(('option', 'type', 'default', 'meaning'), rows) if rows else ['No options.']
  return ['', f'### {name}', '', doc.partition('\n')[0], '', *table]


def _default(value: Any) -> str:
  """As it is written on the command line."""
  if value in (dataclasses.MISSING, inspect.Parameter.empty):
    return 'must be given'
  if value is None or value == '':
    return 'none' if value is None else 'empty'
  return f'`{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}`'


def _described(doc: str, title: str) -> dict[str, str]:
  """Name -> text of the entries below 'Attributes:' or 'Args:' in a docstring."""
  block = re.search(rf'^{title}:\n((?:  .*\n?|\n)+)', doc, re.MULTILINE)
  entries = re.split(r'^  (?=\S)', block[1] if block else '', flags=re.MULTILINE)[1:]
  found = {}
  for entry in entries:
    names, _, text = entry.partition(':')
    found |= dict.fromkeys(names.split(', '), ' '.join(text.split()))
  return found


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
  """A table in Markdown; a bar in a cell would end it."""
  escaped = [[cell.replace('|', r'\|') for cell in row] for row in rows]
  return [f'| {" | ".join(row)} |' for row in (header, ['---'] * len(header), *escaped)]


def _lower(text: str) -> str:
  first = ' '.join(text.partition('\n\n')[0].split())
  return first[:1].lower() + first[1:]


@functools.cache
def diagram(name: str) -> str:
  """The picture of a network, as its first line in the table of networks has it."""
  entry = next(e for e in zoo.ENTRIES if e.name == name)
  return drawing.draw(stages.trace(entry))


PAGES: Mapping[str, Callable[[], str]] = {
  'config.md': config_page,
  'options.md': options_page,
  **{f'diagrams/{name}.svg': functools.partial(diagram, name) for name in models.MODELS},
}


def write() -> None:
  """Writes all pages and pictures."""
  (FOLDER / 'diagrams').mkdir(exist_ok=True)
  for name, page in PAGES.items():
    (FOLDER / name).write_text(page(), encoding='utf-8')


if __name__ == '__main__':
  write()
