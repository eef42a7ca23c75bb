"""The text of --mode=MODE --help: one mode, with its own flags, on one screen.

What a mode and a flag mean is taken from the whole help; here stands which belong together.
"""

import dataclasses
import re

from emseg_jax import command_help

__all__ = ['MODES', 'text']


@dataclasses.dataclass(frozen=True)
class Mode:
  """Attributes:
  flags: those it uses, the needed ones first.
  sections: of the configuration, that are of interest to it.
  result: what stands on stdout, without and with --json.
  examples: the arguments of a command.
  """

  flags: tuple[str, ...]
  sections: tuple[str, ...]
  result: str
  examples: tuple[str, ...]


_GROUP = ('coordinator', 'num_processes', 'process_id')
_RUN = ('workdir', 'config')

MODES = {
  'train': Mode(
    ('config', 'workdir', 'extend', *_GROUP),
    ('task', 'data', 'augment', 'model', 'loss', 'optim', 'train', 'eval', 'mesh', 'run'),
    'nothing; JSON: step, best_step, best_score, scores of each split',
    ('--config=phantom --workdir=runs/phantom',),
  ),
  'evaluate': Mode(
    (*_RUN, 'input', 'labels', 'output', *_GROUP),
    ('data', 'eval', 'predict', 'mesh'),
    'the table of scores; JSON: what evaluation/SPLIT.json holds',
    (
      '--workdir=runs/mine --mode=evaluate --config.eval.split=test',
      '--workdir=runs/mine --mode=evaluate --input=IMAGES --labels=LABELS',
    ),
  ),
  'predict': Mode(
    ('workdir', 'input', 'output', 'roi', 'part', 'dry_run'),
    ('predict', 'eval', 'mesh'),
    'nothing, with --dry_run the plan; JSON: written, or plan',
    ('--workdir=runs/mine --mode=predict --input=IMAGES --output=RESULT',),
  ),
  'postprocess': Mode(
    ('input', 'output', 'config'),
    ('postprocess',),
    'nothing; JSON: written, table, objects',
    ('--mode=postprocess --input=labels.tif --output=objects.tif',),
  ),
  'view': Mode(
    ('input', 'labels', 'workdir', 'port'),
    ('predict',),
    'the address; there is no JSON',
    ('--mode=view --input=volume.zarr --labels=labels.zarr',),
  ),
  'export': Mode(
    ('workdir', 'output', 'forms', 'unscored', 'title', 'licence', 'authors'),
    ('eval',),
    'nothing; JSON: written, forms',
    ('--workdir=runs/mine --mode=export --output=model --licence=CC-BY-4.0',),
  ),
  'check': Mode(
    ('config', 'workdir', 'output'),
    ('task', 'data'),
    'the findings; JSON: ok, verdict, splits, problems, advice',
    ('--config=auto:FOLDER --mode=check',),
  ),
  'report': Mode(
    ('workdir',), ('run',), 'nothing; JSON: written', ('--workdir=runs/mine --mode=report',)
  ),
  'models': Mode(
    ('output',), (), 'the table; JSON: networks', ('--mode=models --output=models.md',)
  ),
  'benchmark': Mode(
    ('config', 'workdir', 'what', 'output'),
    ('data', 'model', 'train', 'mesh'),
    'the measurements; JSON: the same',
    ('--mode=benchmark --config=tiny --output=speed.json',),
  ),
  'prepare': Mode(
    ('config', 'input', 'output', 'partial'),
    ('task', 'data'),
    'what was built; JSON: data_sets',
    ('--mode=prepare --config=mine.json --output=data/tfds/mine',),
  ),
  'fuse': Mode(
    ('input', 'output'),
    ('predict', 'mesh'),
    'nothing; JSON: written, values',
    ('--mode=fuse --input=IMAGES --output=MAP RUN RUN ...',),
  ),
  'compare': Mode(
    ('output',),
    ('run',),
    'the table in Markdown; JSON: written, rows',
    ('--mode=compare --output=compared RUN RUN ...',),
  ),
}


def text(name: str) -> str:
  """Returns the help of one mode."""
  mode, whole = MODES[name], command_help.text(fields=False)
  blocks = [*_entries(whole, 'FLAGS', [f'--{f}' for f in (*mode.flags, 'quiet', 'json')])]
  examples = '\n'.join(f'  python -m emseg_jax.main {e}' for e in mode.examples)
  about = '\n'.join(_entries(whole, 'MODES', [name]))
  sections = (
    '--config.SECTION.FIELD=VALUE, which --helpfull lists, of these sections:\n'
    f'                  {", ".join(mode.sections)}'
  )
  parts = [about, f'\n{examples}', '\nFLAGS', *blocks]
  if mode.sections:
    parts.append(f'  {sections}')
  parts += [
    '\nON STDOUT',
    f'  {mode.result}',
    '\n--help tells of all modes, networks and exit codes',
  ]
  return '\n'.join(parts)


def _entries(whole: str, title: str, names: list[str]) -> list[str]:
  """Entries of one part of the help: a line indented by two, and those below that are by more."""
  part = re.search(rf'^{title}\n((?:  .*\n)+)', whole, re.MULTILINE)[1]
  if title == 'FLAGS':  # not the names of all configurations
    part = re.sub(
      r'(--config=C .*), or one of:\n(?: {18}(?!optional).*\n)+', r'\1, or a name\n', part
    )
  found = re.findall(r'^  \S.*\n(?:   .*\n)*', part, re.MULTILINE)
  by_name = {re.match(r'  (-*\w+)', entry)[1]: entry.rstrip('\n') for entry in found}
  return [by_name[name] for name in names]
