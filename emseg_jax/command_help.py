"""The text of --help, written for someone who has never seen the package."""

import json
import textwrap
from collections.abc import Iterable, Iterator

import pydantic

from emseg_jax import config_io
from emseg_jax.config import Config, Source

__all__ = ['text']

TEXT = """\
emseg_jax: train, evaluate and run segmentation networks on electron-microscopy images.

  python -m emseg_jax.main --config=CONFIG --workdir=DIR [--mode=MODE]
                           [--config.SECTION.FIELD=VALUE ...]

FIRST STEPS
  Train on synthetic images, nothing to download:
    python -m emseg_jax.main --config=phantom --workdir=runs/phantom
  Train on your own folder with images/ and labels/ in it:
    python -m emseg_jax.main --config=auto:FOLDER --mode=check
    python -m emseg_jax.main --config=auto:FOLDER --workdir=runs/mine
  Segment other images with the result:
    python -m emseg_jax.main --workdir=runs/mine --mode=predict --input=IMAGES --output=RESULT

MODES
  train      (default) train, or go on where the run stopped; then score it and write report.html
  evaluate   score the best checkpoint on whole images; with --input=PRED --labels=GT score
             segmentations made by any program
  predict    segment --input (image, folder or volume: TIFF, MRC, HDF5, Zarr, N5, precomputed,
             NIfTI, also at http://, gs://, s3://) into --output, in the same format or in that of
             its extension; volumes block by block, started again it goes on
  postprocess  clean the labels or probabilities in --input and number the objects, block by block:
             --output holds their ids, OUTPUT.csv volume, centroid and box; needs no --config
  view       VOLUME ...: look at --input, with --labels and further volumes over it, in a browser:
             neuroglancer, served on this machine only; needs the extra view
  export     write the trained network as a folder, --output, for others and for other programs;
             --workdir of predict and config.model.init_from take such a folder, too
  check      look for problems in the data before training; exit code 2 if there are any
  report     write report.html again
  models     print all networks with their size, cost and receptive field; needs no --config
  benchmark  time training and prediction of --config on this machine, with random images; with
             --what=data, reading patches from memory and files
  prepare    build the data sets (tfds://NAME) that --config names from the published files in
             --input, or write its files as a data set --output=FOLDER/NAME
  fuse       RUN RUN ...: segment --input with several binary networks into one map, --output
  compare    RUN RUN ...: one table and figures of finished runs, in the folder --output

FLAGS
  --config=C      FILE.py[:ARG], FILE.json, or one of:
{configs}
                  optional where --workdir already holds a run
  --workdir=DIR   folder of the run: configuration, checkpoints, metrics, report
  --mode=M        one of the modes above
  --input=PATH    image, folder or stack to predict; segmentation to score
  --labels=PATH   ground truth for --mode=evaluate --input
  --output=PATH   result of predict; JSON file for check, benchmark and evaluate --input,
                  Markdown file for models and benchmark --what=data
  --what=data     measure reading data instead of the network (benchmark)
  --partial       take fewer or smaller images than were published (prepare)
  --port=N        of --mode=view; without it a free one
  --forms=A,B     what export writes beside the parameters: stablehlo (default), onnx, bioimageio
                  for other programs, of which the latter two need the extra onnx; bf16, int8:
                  the parameters in fewer bits, and what that costs in mIoU
  --unscored     do not score these
  --authors=A,B   of an exported model
  --title=TEXT    name of an exported model
  --licence=ID    of the parameters of an exported model, best an SPDX identifier
  --roi=BOX       predict a part of a volume, z0:z1,y0:y1,x0:x1, such as 0:64,:,512:1024
  --part=I/N      predict the I-th of N shares of a volume, from 0, on several machines
  --dry_run       say how many blocks, how much memory and time predict would take
  --coordinator=HOST:PORT
                  of process 0, where several train together; SLURM and Open MPI need no flags
  --num_processes=N
                  how many they are
  --process_id=I  which of them this is, from 0
  --extend        allow a larger train.steps than the run had, or go on after early stopping
  --quiet         on stderr only warnings and errors
  --json          on stdout the result as one JSON document; see docs/scripts.md
  --help          this text;  --mode=M --help: that mode;  --helpfull: every field, too

OVERRIDES
  --config.optim.learning_rate=0.02   --config.model.options.width=0.5
  --config.data.patch='(256,256)'     --config.run.compile_cache=none
  A field that does not exist, or a value that is not allowed, is answered with what is.

NETWORKS
{models}

EXIT CODES
  0 done   2 bad input   3 the loss stopped being finite   75 stopped and saved: start it again
  130 ended by Ctrl-C, 143 by SIGTERM, nothing saved   141 stdout was closed early
"""

SOURCES = """
SOURCES: fields of each entry of data.train, data.validation and data.test, which are lists:
  --config.data.train='[{"images":"a.tif","labels":"b.tif"}]'  --config.data.train.0.slices=:80
"""


def text(*, fields: bool) -> str:
  """Returns the help; with `fields`, the reference of all configuration fields below it."""
  from emseg_jax import models

  configs = _wrapped(config_io.shipped(), indent=18)
  base = TEXT.format(configs=configs, models=_wrapped(models.MODELS))
  if not fields:
    return base
  config, source = ('\n'.join(f) for f in (_fields(Config, '--config'), _fields(Source, '')))
  return f'{base}\nCONFIGURATION\n{config}\n{SOURCES}\n{source}\n'


def _wrapped(names: Iterable[str], *, indent: int = 2) -> str:
  blank = ' ' * indent
  return textwrap.fill(', '.join(names), 96, initial_indent=blank, subsequent_indent=blank)


def _fields(section: type[pydantic.BaseModel], prefix: str) -> Iterator[str]:
  for name, field in section.model_fields.items():
    path = f'{prefix}.{name}' if prefix else name
    annotation = field.annotation
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
      yield from _fields(annotation, path)
    else:
      kind = pydantic.TypeAdapter(annotation)
      default = kind.dump_python(field.default, mode='json', exclude_defaults=True)
      shown = default if isinstance(default, str) else json.dumps(default)
      yield f'  {path}={shown}\n      {field.description}'
