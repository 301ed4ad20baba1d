"""Text that every machine has, and the datatrove pipelines that are run over it: filters of web
text, and deduplication by MinHash. For the acceptance tests of the adapter and its benchmark."""

from __future__ import annotations

import ast
import gzip
import json
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from datatrove.executor.base import PipelineExecutor

SHARDS = 8
"""Files of a corpus, and ranks of the stages that read it."""
MODULES = 60
"""Sources that are read, unless one says otherwise: more would only take longer."""

SMALL: dict[str, Any] = {"tasks": 2, "workers": 2, "mem_per_cpu_gb": 0.05}
"""Arguments of an executor on Ray, for machines that have little memory."""

MakeExecutor = Callable[..., PipelineExecutor]
"""Called with `pipeline`, `tasks`, `logging_dir` and, but for the first stage, `depends`."""


def documents(modules: int = MODULES) -> Iterator[str]:
    """Yield the help topics of Python, and docstrings of its standard library, in a fixed order.

    Docstrings repeat from method to method, so that there are duplicates and near-duplicates.
    """
    from pydoc_data.topics import topics  # type: ignore[import-not-found,unused-ignore]

    for name in sorted(topics):
        yield topics[name]
    library = Path(sysconfig.get_paths()["stdlib"])
    sources = sorted(path for path in library.rglob("*.py") if _is_prose(path.relative_to(library)))
    for path in sources[:modules]:
        yield from _docstrings(path)


def write_corpus(folder: Path, *, copies: int = 1, modules: int = MODULES) -> int:
    """Write the documents as JSONL, one file a shard, each `copies` times with ids of its own and
    another last line; return how many."""
    folder.mkdir(parents=True)
    shards: list[list[str]] = [[] for _ in range(SHARDS)]
    count = 0
    for copy in range(copies):
        for number, text in enumerate(documents(modules)):
            if copy:
                text = f"{text}\n\nThis is copy {copy} of what was said above, word for word."
            line = json.dumps({"text": text, "id": f"{copy}-{number}"})
            shards[number % SHARDS].append(f"{line}\n")
            count += 1
    for number, lines in enumerate(shards):
        (folder / f"{number:02d}.jsonl").write_text("".join(lines), encoding="utf-8")
    return count


def quality(make: MakeExecutor, source: Path, work: Path) -> PipelineExecutor:
    """Return an executor that filters the corpus as FineWeb does: what Gopher and FineWeb find good
    goes to `work/kept`."""
    from datatrove.pipeline.filters import (
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    return make(
        pipeline=[
            JsonlReader(str(source)),
            GopherRepetitionFilter(),
            GopherQualityFilter(min_doc_words=20, min_stop_words=1),
            FineWebQualityFilter(char_duplicates_ratio=0.1, new_line_ratio=0.5),
            JsonlWriter(str(work / "kept"), output_filename="${rank}.jsonl.gz"),
        ],
        tasks=SHARDS,
        logging_dir=str(work / "logs" / "quality"),
    )


def minhash(make: MakeExecutor, source: Path, work: Path) -> PipelineExecutor:
    """Return the last of the four executors that deduplicate the corpus by MinHash, each of which
    depends on the one before: signatures, buckets, clusters, filter. What is left goes to
    `work/kept`."""
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.hashing import HashConfig

    config = MinhashConfig(hash_config=HashConfig(hash_fc="sha1"))
    signatures, buckets, removed = (
        str(work / name) for name in ("signatures", "buckets", "removed")
    )
    stages: Sequence[tuple[str, int, list[Any]]] = [
        (
            "signatures",
            SHARDS,
            [
                JsonlReader(str(source)),
                MinhashDedupSignature(output_folder=signatures, config=config),
            ],
        ),
        (
            "buckets",
            config.num_buckets,
            [MinhashDedupBuckets(input_folder=signatures, output_folder=buckets, config=config)],
        ),
        (
            "cluster",
            1,
            [MinhashDedupCluster(input_folder=buckets, output_folder=removed, config=config)],
        ),
        (
            "filter",
            SHARDS,
            [
                JsonlReader(str(source)),
                MinhashDedupFilter(input_folder=removed),
                JsonlWriter(str(work / "kept"), output_filename="${rank}.jsonl.gz"),
            ],
        ),
    ]
    executor: PipelineExecutor | None = None
    for name, tasks, pipeline in stages:
        depends = {} if executor is None else {"depends": executor}
        logging_dir = str(work / "logs" / name)
        executor = make(pipeline=pipeline, tasks=tasks, logging_dir=logging_dir, **depends)
    assert executor is not None
    return executor


def simple(make: MakeExecutor, source: Path, work: Path) -> PipelineExecutor:
    """Return an executor with a step of each kind: of the library, a function, a writer."""
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    def long(data: Any, rank: int = 0, world_size: int = 1) -> Any:
        for document in data:
            if len(document.text) > 200:
                yield document

    return make(
        pipeline=[
            JsonlReader(str(source)),
            long,
            JsonlWriter(str(work / "out"), output_filename="${rank}.jsonl"),
        ],
        logging_dir=str(work / "logs"),
    )


def kept(work: Path) -> dict[str, list[str]]:
    """Return the ids of what is left, by name of the file, in the order of the file."""
    found = {}
    for path in sorted((work / "kept").glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            found[path.name] = [json.loads(line)["id"] for line in file]
    return found


def local(**arguments: Any) -> PipelineExecutor:
    """Make the executor that others are compared with."""
    from datatrove.executor import LocalPipelineExecutor

    executor: PipelineExecutor = LocalPipelineExecutor(**({"workers": 2} | arguments))
    return executor


def _is_prose(path: Path) -> bool:
    return not {"site-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"} & {
        *path.parts
    }


def _docstrings(path: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old escapes in the sources
        tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None and len(text.split()) >= 8:
                yield text


def stock(**arguments: Any) -> PipelineExecutor:
    """Make datatrove's executor on the Ray whose address is in RAY_ADDRESS."""
    import ray
    from datatrove.executor.ray import RayPipelineExecutor

    ray.init(address="auto", log_to_driver=False)
    executor: PipelineExecutor = RayPipelineExecutor(**SMALL, **arguments)
    return executor


def main() -> None:
    """Run pipelines over a folder by one of datatrove's own executors: `local` or `stock`, then
    the pipeline's name, the folder of the text, and that for what comes out."""
    who, name, source, work = sys.argv[1:]
    make = {"local": local, "stock": stock}[who]
    chosen = {"quality": quality, "minhash": minhash, "simple": simple}[name]
    chosen(make, Path(source), Path(work)).run()


if __name__ == "__main__":
    main()
