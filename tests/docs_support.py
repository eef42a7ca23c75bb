"""What the documentation shows, taken out of it: commands, files, changes of files, messages.

A command is a line of a fenced or indented block, or a code span, that begins with one of PROGRAMS.
Files of a page are fenced blocks with a title; a block of language diff changes a file.
"""

import ast
import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = ('README.md', *(f'docs/{p.name}' for p in sorted((ROOT / 'docs').glob('*.md'))))
PAGES += ('launch/README.md',)
PROGRAMS = ('python', 'emseg_jax ', 'make', 'pip', 'sbatch', 'source', 'docker', 'mkdocs')
MAIN = ('python', '-m', 'emseg_jax.main')

FENCE = re.compile(r'^```(\w*)([^\n]*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Command:
  """Attributes:
  page: where it stands first.
  text: in one line, without comments.
  """

  page: str
  text: str

  @property
  def arguments(self) -> list[str]:
    return shlex.split(self.text)

  def is_main(self) -> bool:
    return tuple(self.arguments[:3]) == MAIN


@dataclasses.dataclass(frozen=True)
class Block:
  """A fenced block of a page."""

  language: str
  title: str | None
  text: str


def blocks(page: str) -> list[Block]:
  """The fenced blocks of a page."""
  text = (ROOT / page).read_text(encoding='utf-8')
  found = FENCE.findall(text)
  titles = (re.search(r'title="([^"]+)"', options) for _, options, _ in found)
  return [
    Block(language, title[1] if title else None, body)
    for (language, _, body), title in zip(found, titles, strict=True)
  ]


def commands() -> list[Command]:
  """Every command of every page, the first time that it is shown."""
  found: dict[str, str] = {}
  for page in PAGES:
    for text in _commands(page):
      found.setdefault(text, page)
  return [Command(page, text) for text, page in found.items()]


def _commands(page: str) -> Iterator[str]:
  text = (ROOT / page).read_text(encoding='utf-8')
  outside = FENCE.sub('', text)
  indented = re.findall(r'(?:^    .*\n)+', outside, re.MULTILINE)
  shell = [b.text for b in blocks(page) if b.language in ('sh', 'bash', '')]
  for lines in (*shell, *indented):
    yield from filter(_is_command, map(_plain, lines.replace('\\\n', ' ').splitlines()))
  spans = re.findall(r'`([^`]+)`', re.sub(r'(?m)^    .*\n', '', outside))
  yield from (t for t in map(_plain, spans) if _is_command(t) and ' ' in t)


def _plain(line: str) -> str:
  """Without comment and needless space."""
  return ' '.join(re.sub(r'\s#\s.*', '', line).split())


def _is_command(text: str) -> bool:
  return text.startswith(PROGRAMS)


def shell_lines(page: str) -> list[str]:
  """What stands in blocks of language sh, command or not."""
  lines = [
    _plain(line)
    for block in blocks(page)
    if block.language in ('sh', 'bash')
    for line in block.text.replace('\\\n', ' ').splitlines()
  ]
  return [line for line in lines if line]


def apply_diff(text: str, diff: str) -> str:
  """Changes a text as a diff without line numbers says; each hunk's old lines occur once in it."""
  for hunk in re.split(r'^@@.*\n', diff, flags=re.MULTILINE):
    lines = hunk.splitlines(keepends=True)
    old = ''.join(line[1:] for line in lines if line[0] in ' -')
    new = ''.join(line[1:] for line in lines if line[0] in ' +')
    assert text.count(old) == 1, hunk
    text = text.replace(old, new)
  return text


def source_texts() -> list[str]:
  """Every text in the package's source, with … for what is put into it, and the Makefile's."""
  found = [(ROOT / 'Makefile').read_text(encoding='utf-8')]
  for path in sorted((ROOT / 'emseg_jax').rglob('*.py')):
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
      if isinstance(node, ast.Constant) and isinstance(node.value, str):
        found.append(re.sub('%[sdgr]', '…', node.value))
      elif isinstance(node, ast.JoinedStr):
        parts = (v.value if isinstance(v, ast.Constant) else '…' for v in node.values)
        found.append(''.join(parts))
  return found


def is_quoted(message: str, texts: list[str]) -> bool:
  """Whether the fixed parts of a message occur, in this order, in one of the texts."""
  parts = message.strip().split('…')
  pattern = re.compile('.*?'.join(map(re.escape, parts)), re.DOTALL)
  longest = max(parts, key=len)
  return any(longest in text and pattern.search(text) for text in texts)
