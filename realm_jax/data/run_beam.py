"""Builds shards with Apache Beam: on this machine (DirectRunner) or on many (DataflowRunner and others)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from etils import epath

from realm_jax.data.files import write_whole
from realm_jax.data.shards import Settings, Shard, build_shard, cut_shards
from realm_jax.data.sources import Source

_NAMES_FILE = "names.json"


def run_beam(
  sources: Sequence[Source],
  settings: Settings,
  directory: str,
  *,
  shard_bytes: int,
  runner: str,
  options: Sequence[str] = (),
) -> Iterator[str]:
  """Runs the pipeline to its end, then yields the names of the shards' files in order.

  Args:
    directory: where all workers can write: gs:// for those of the cloud, which read gs:// inputs too.
    runner: Beam's name of it.
    options: Beam's own, such as --project=mine --region=us-central1 --temp_location=gs://mine/tmp.
  """
  try:
    import apache_beam as beam  # noqa: PLC0415 an extra, 2 s
    from apache_beam.options.pipeline_options import PipelineOptions  # noqa: PLC0415
  except ImportError as error:
    raise ImportError(f'--runner={runner} needs Apache Beam; run: pip install "realm_jax[beam]"') from error
  names_path = epath.Path(directory) / _NAMES_FILE
  names_path.unlink(missing_ok=True)
  with beam.Pipeline(options=PipelineOptions([f"--runner={runner}", *options])) as pipeline:
    _ = (
      pipeline
      | "sources" >> beam.Create(list(enumerate(sources)))
      | "cut" >> beam.FlatMap(_cut, shard_bytes)
      | "spread" >> beam.Reshuffle()
      | "build" >> beam.Map(_build, settings, directory)
      | "collect" >> beam.combiners.ToList()
      | "list" >> beam.Map(_write_names, str(names_path))
    )
  yield from json.loads(names_path.read_text())


def _cut(numbered_source: tuple[int, Source], shard_bytes: int) -> Iterator[Shard]:
  return cut_shards(*numbered_source, shard_bytes)


def _build(shard: Shard, settings: Settings, directory: str) -> str:
  return build_shard(shard, settings, directory)


def _write_names(names: list[str], path: str) -> None:
  write_whole(epath.Path(path), json.dumps(sorted(names)).encode())
