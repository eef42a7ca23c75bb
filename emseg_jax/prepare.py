"""`--mode=prepare`: builds data sets into array_record files that training reads at random.

A data set is built in a folder beside its place and renamed when it is complete: what is there is
whole.
"""

import contextlib
import dataclasses
import io
import json
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emseg_jax.config import Config
from emseg_jax.data import datasets, tfds_volume
from emseg_jax.errors import ConfigError, DataError, OutputError

__all__ = ['Report', 'SplitReport', 'format_report', 'prepare', 'prepare_config', 'prepare_sources']

LOGGER = logging.getLogger('emseg_jax')
SPLITS = ('train', 'validation', 'test')
MOST_VALUES = 16  # labels with more are instances, which are counted only


@dataclasses.dataclass(frozen=True)
class SplitReport:
  """What was written of a split.

  Attributes:
    shapes: the different (y, x) of its examples.
    values: per label, how many voxels have each value.
    size: bytes of its files.
  """

  split: str
  examples: int
  shapes: tuple[tuple[int, int], ...]
  values: dict[str, dict[int, int]]
  size: int


@dataclasses.dataclass(frozen=True)
class Report:
  """A data set as it lies in `folder`; `seconds` is None if it was there before."""

  folder: Path
  splits: tuple[SplitReport, ...]
  classes: tuple[str, ...]
  label_values: dict[int, int]
  seconds: float | None


def prepare(
  name: str,
  *,
  source: Path,
  output: Path,
  variant: str | None = None,
  partial: bool = False,
  should_stop: Callable[[], bool] = lambda: False,
) -> Report:
  """Builds a published data set into OUTPUT/NAME[/VARIANT]/VERSION, unless it is there already.

  Args:
    name: one of `datasets.BUILDERS`.
    source: folder with the published files; those that are public are downloaded into it.
    output: folder of all data sets.
    variant: which one, where there are several.
    partial: allow other numbers and sizes of examples than were published, and missing splits.
    should_stop: asked before every example.

  Raises:
    ConfigError: no such data set or variant.
    DataError: files are missing, cannot be downloaded, or are not what was published.
    OutputError: it cannot be written.
    Interrupted: `should_stop` said so; nothing was written.
  """
  cls = datasets.builder_class(name)
  variants = [v for v in cls.VARIANTS if v]
  if (variant or '') not in cls.VARIANTS:
    allowed = f'one of {", ".join(variants)}' if variants else 'none'
    raise ConfigError(f'{name}: has no configuration {variant or ""!r}; allowed: {allowed}')
  options = {'source': source, 'partial': partial, 'config': variant, 'should_stop': should_stop}
  return _build(cls, options, output)


def prepare_sources(
  config: Config, *, output: Path, should_stop: Callable[[], bool] = lambda: False
) -> Report:
  """Builds the files that `config.data` names into OUTPUT/1.0.0; OUTPUT's name is the data set's.

  Raises:
    ConfigError: the name is not made of small letters, digits and '_', a source is a phantom, or
      labels are instance ids.
    DataError, OutputError, Interrupted: as `prepare`.
  """
  from emseg_jax.data.datasets import folder

  if config.task.affinities:
    raise ConfigError(
      'task.activation=affinities: array_record files hold classes, no instance ids; train on the '
      'files themselves'
    )
  if not re.fullmatch(folder.NAME, output.name):
    raise ConfigError(
      f'--output={output}: its last part becomes the name of the data set and must be made of '
      "small letters, digits and '_', a letter first"
    )
  options = {
    'name': output.name,
    'sources': {split: getattr(config.data, split) for split in SPLITS},
    'classes': config.task.values,
    'label_values': config.data.label_mapping,
    'ignore_value': config.task.ignore_value,
    'should_stop': should_stop,
  }
  return _build(folder.Folder, options, output.parent)


def prepare_config(
  config: Config,
  *,
  source: Path | None = None,
  output: Path | None = None,
  partial: bool = False,
  should_stop: Callable[[], bool] = lambda: False,
) -> list[Report]:
  """Builds every data set that a configuration names as tfds://, or else its files into `output`.

  Args:
    config: its `data` is built.
    source: folder with the published files; None: DIR/downloads/NAME[_VARIANT].
    output: for files only, as in `prepare_sources`; data sets name their folder themselves.
    partial, should_stop: as in `prepare`.

  Raises:
    ConfigError, DataError, OutputError, Interrupted: as `prepare` and `prepare_sources`.
  """
  images = [s.images for split in SPLITS for s in getattr(config.data, split) if s.images]
  named = [tfds_volume.parse(i) for i in images if i.startswith(tfds_volume.SCHEME)]
  wanted = list(dict.fromkeys((a.name, a.variant, a.folder) for a in named))
  if not wanted:
    if output is None:
      raise ConfigError(
        f'--mode=prepare: no source of data is a {tfds_volume.SCHEME} data set; its files are '
        'written as one if --output=FOLDER/NAME is given'
      )
    return [prepare_sources(config, output=output, should_stop=should_stop)]
  if source is not None and len(wanted) > 1:
    raise ConfigError(
      f'--input={source}: the configuration names {len(wanted)} data sets, prepare them one by one'
    )
  return [
    prepare(
      name,
      source=source or folder / 'downloads' / '_'.join(filter(None, (name, variant))),
      output=folder,
      variant=variant,
      partial=partial,
      should_stop=should_stop,
    )
    for name, variant, folder in wanted
  ]


def _build(cls: Any, options: dict[str, Any], output: Path) -> Report:
  start = time.monotonic()
  output = output.absolute()
  try:
    output.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix='.preparing-', dir=output))
  except OSError as error:
    raise OutputError(f'{output}: cannot be written: {error.strerror}') from error
  try:
    builder = cls(data_dir=temporary, **options)
    built = Path(builder.data_dir)
    final = output / built.relative_to(temporary)
    if final.exists():
      _check_same(final, partial=builder.info.metadata['partial'])
      return read_report(final)
    # TFDS prints what concerns its own users.
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare(download_dir=temporary / 'downloads')
    final.parent.mkdir(parents=True, exist_ok=True)
    built.rename(final)
  except OSError as error:
    raise OutputError(f'{output}: cannot be written: {error}') from error
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  return read_report(final, seconds=time.monotonic() - start)


def _check_same(folder: Path, *, partial: bool) -> None:
  if json.loads((folder / 'metadata.json').read_text())['partial'] and not partial:
    raise DataError(f'{folder}: was built from a part of the data; remove it to build the whole')
  LOGGER.info('%s is there already; remove it to build it again', folder)


def read_report(folder: Path, *, seconds: float | None = None) -> Report:
  """What lies in the folder of a built data set."""
  about = json.loads((folder / 'metadata.json').read_text(encoding='utf-8'))
  splits = tuple(
    SplitReport(
      split=name,
      examples=len(split['names']),
      shapes=tuple(sorted({tuple(shape) for shape in split['shapes']})),
      values={k: {int(v): n for v, n in c.items()} for k, c in split['values'].items()},
      size=sum(file.stat().st_size for file in folder.glob(f'*-{name}.array_record-*')),
    )
    for name, split in about['splits'].items()
  )
  values = {int(value): k for value, k in about['label_values'].items()}
  return Report(folder, splits, tuple(about['classes']), values, seconds)


def format_report(report: Report) -> str:
  """A table: splits, examples, sizes, shares of the label values, megabytes; then the time."""
  rows = [('split', 'examples', 'size (y x)', 'MB', 'labels')]
  for split in report.splits:
    sizes = ', '.join(f'{y} x {x}' for y, x in split.shapes[:3])
    sizes += f' and {len(split.shapes) - 3} more' if len(split.shapes) > 3 else ''
    labels = '; '.join(_shares(name, split, report) for name in split.values) or 'none'
    rows.append((split.split, str(split.examples), sizes, f'{split.size / 1e6:.1f}', labels))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = ['  '.join(map(str.ljust, row, widths)).rstrip() for row in rows]
  seconds = 'was there' if report.seconds is None else f'{report.seconds:.1f} s'
  return '\n'.join([*lines, f'-> {report.folder} ({seconds})'])


def _shares(label: str, split: SplitReport, report: Report) -> str:
  counts = split.values[label]
  if len(counts) > MOST_VALUES:
    return f'{label}: {len(counts)} values'
  total = sum(counts.values())

  def name(value: int) -> str:
    k = report.label_values.get(value)
    return str(value) if k is None else f'{value} {report.classes[k]}'

  shares = ', '.join(f'{name(v)} {n / total:.1%}' for v, n in sorted(counts.items()))
  return f'{label}: {shares}'
