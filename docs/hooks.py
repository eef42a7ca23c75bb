"""For mkdocs: pages that lie outside of docs/, and the links to them."""

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

__all__ = ['on_files', 'on_page_markdown']

ROOT = Path(__file__).parent.parent
OUTSIDE = {'launch.md': 'launch/README.md', 'changelog.md': 'CHANGELOG.md'}


def on_files(files: Files, config: MkDocsConfig) -> Files:
  """Adds the pages."""
  for name, path in OUTSIDE.items():
    files.append(File.generated(config, name, content=(ROOT / path).read_text(encoding='utf-8')))
  return files


def on_page_markdown(markdown: str, **_: Any) -> str:
  """Turns links that work in the repository into those of the site."""
  for name, path in OUTSIDE.items():
    markdown = markdown.replace(f'](../{path}', f']({name}')
  return markdown
