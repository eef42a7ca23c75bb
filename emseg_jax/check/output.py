"""Writes what the data doctor found: as text, JSON, a page with pictures, or all three."""

import json
from pathlib import Path

from emseg_jax.check import html
from emseg_jax.check.doctor import Report, format_report
from emseg_jax.config import Config
from emseg_jax.config_io import write_text
from emseg_jax.errors import ConfigError

__all__ = ['write']

WRITERS = {
  '.txt': lambda report, config: format_report(report) + '\n',
  '.json': lambda report, config: json.dumps(report.to_json(), indent=2) + '\n',
  '.html': html.render,
}


def write(report: Report, config: Config, path: Path) -> None:
  """Writes one file, of the kind that its name says, or check.txt, .json and .html into a folder.

  Raises:
    ConfigError: the name ends in something else.
    OutputError: it cannot be written.
  """
  suffix = path.suffix.lower()
  if suffix in WRITERS and not path.is_dir():
    write_text(path, WRITERS[suffix](report, config))
  elif not suffix or path.is_dir():
    for ending, make in WRITERS.items():
      write_text(path / f'check{ending}', make(report, config))
  else:
    raise ConfigError(
      f'--output={path}: ends in {suffix}; allowed: {", ".join(WRITERS)}, or a folder for all three'
    )
