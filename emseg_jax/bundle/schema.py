"""model.json: what a bundle says of itself, and how records of older versions are brought up to
date.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from emseg_jax.config.base import Colour
from emseg_jax.errors import BundleError

__all__ = [
  'MIGRATIONS',
  'SCHEMA_VERSION',
  'Input',
  'Label',
  'Network',
  'Normalisation',
  'Parameters',
  'Record',
  'Sample',
  'Training',
  'parse',
]

SCHEMA_VERSION = 1

# From a version to the next: what a reader does with the record of an older package.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}

# Files are looked for in the folder itself, nowhere else.
FileName = Annotated[str, Field(pattern=r'^[A-Za-z0-9_][A-Za-z0-9_.-]*$', max_length=100)]
Count = Annotated[int, Field(ge=0)]
Axes = Literal['byxc', 'bzyxc']


class _Part(pydantic.BaseModel):
  model_config = pydantic.ConfigDict(extra='forbid', frozen=True, allow_inf_nan=False)


class Network(_Part):
  """The architecture.

  Attributes:
    name, options: as in config.model.
    outputs: channels of the logits; 1 is a sigmoid.
    parameters: trainable scalars.
    divisor: of each spatial axis, the multiple that images are padded to inside.
    receptive_field: span of voxels along each axis that one output voxel depends on; None: all.
  """

  name: str
  options: dict[str, Any]
  outputs: Count
  parameters: Count
  divisor: tuple[int, ...]
  receptive_field: tuple[int, ...] | None


class Label(_Part):
  """What a label pixel can be: a class, or a mask of classes that overlap.

  Attributes:
    name: of the class or mask.
    colour: for pictures.
    file_value: in the label files that were trained on, and in predicted files.
  """

  name: str
  colour: Colour
  file_value: int


class Normalisation(_Part):
  """How pixels become what the network sees.

  Attributes:
    kind, channels, mean, std, dtype: see `data.normalise.Normalisation`.
    inside: the exported function does it, as (pixel - offset) / scale. Otherwise its input is to be
      normalised as `formula` says.
    offset, scale: one number per channel.
    formula: in words.
  """

  kind: Literal['dataset', 'per_volume', 'percentile', 'imagenet', 'caffe', 'scale']
  channels: Literal[1, 3]
  mean: float
  std: float
  dtype: str
  inside: bool
  offset: tuple[float, ...]
  scale: tuple[float, ...]
  formula: str


class Input(_Part):
  """What the network takes.

  Attributes:
    axes: order of the axes of input and output of exported functions.
    channels: C of their input.
    planes: sections that one output section is made from; above 1 their channels are side by side.
    voxel_size_zyx: of the training volumes, nm; unknown sizes are None.
    normalisation: see there.
  """

  axes: Axes
  channels: Count
  planes: Annotated[int, Field(ge=1)]
  voxel_size_zyx: tuple[float | None, float | None, float | None] | None
  normalisation: Normalisation


class Training(_Part):
  """Where the parameters are from.

  Attributes:
    step: updates done.
    best_step, best_score: of the run, by the score that config.eval.best names; -1: none.
    data: fingerprint of the training data.
    versions: of the packages that trained it.
    config: all of the configuration.
  """

  step: int
  best_step: int
  best_score: float | None
  data: str
  versions: dict[str, str]
  config: dict[str, Any]


class Parameters(_Part):
  """Attributes:
  file: name in the folder.
  sha256: of its content.
  """

  file: FileName
  sha256: Annotated[str, Field(pattern='^[0-9a-f]{64}$')]


class Sample(_Part):
  """Attributes:
  input, output: names in the folder.
  source: where the input is from.
  """

  input: FileName
  output: FileName
  source: str


class Record(_Part):
  """All of model.json.

  Attributes:
    schema_version: of this layout.
    title: a name for people.
    created: UTC, ISO 8601.
    licence: None: not stated.
    network, input, training, parameters, sample: see there.
    activation: as in config.task.
    classes: names of the channels of the probabilities; of affinities those of the offsets.
    labels: what a label pixel can be, by its value from 0; none of instances.
    scores: split -> what evaluation of this very step found.
    forms: name of an exported form -> its file and what is to be known of it.
  """

  schema_version: Literal[1]
  title: str
  created: str
  licence: str | None
  network: Network
  input: Input
  activation: Literal['softmax', 'sigmoid', 'multilabel', 'affinities']
  classes: tuple[str, ...]
  labels: tuple[Label, ...]
  training: Training
  scores: dict[str, dict[str, Any]]
  parameters: Parameters
  sample: Sample
  forms: dict[str, dict[str, Any]]


def parse(
  raw: Any,
  *,
  where: str,
  current: int = SCHEMA_VERSION,
  migrations: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = MIGRATIONS,
) -> dict[str, Any]:
  """Brings the content of a model.json of any version to the current one.

  Args:
    raw: what the JSON says.
    where: for messages.
    current: version to reach.
    migrations: see `MIGRATIONS`.

  Raises:
    BundleError: it is no such record, or of a newer version.
  """
  version = raw.get('schema_version') if isinstance(raw, dict) else None
  if type(version) is not int or version < 1:
    raise BundleError(f'{where}: schema_version is {version!r:.50}, it must be 1 to {current}')
  if version > current:
    raise BundleError(
      f'{where}: is of schema version {version}, this package reads up to {current}; install a '
      'newer emseg_jax'
    )
  while version < current:
    raw = migrations[version](raw)
    version += 1
  return raw
