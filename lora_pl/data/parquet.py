"""Columns of a Parquet file, decoded by a process of its own.

1 KB of Parquet can stand for gigabytes, in pages that its metadata need not mention, and a decoder in C++ may crash.
Here the system limits the decoder's memory, and a crash ends its process alone.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from lora_pl.errors import UserError, first_line

MEMORY = 1 << 30
"""Bytes of data that the decoder may hold."""
ROWS, BYTES = 256, 1 << 24
"""Rows that are decoded at a time, and bytes that are passed on at a time, unless a single row is longer."""
ENVIRONMENT = {"ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Nothing that reserves memory for later."""
NO_TEXT = "; lists are read as labels alone, by --data.task multilabel"


def parquet_batches(path: Path, columns: Sequence[str], lists: Collection[str] = ()) -> Iterator[Any]:
    """The rows as Arrow's record batches of `columns`.

    Args:
        path: The file.
        columns: The columns to read.
        lists: Those whose cells may be lists of texts.

    Raises:
        UserError: `data.format`: the file can't be decoded, or not within `MEMORY`; `data.column`: a column is missing;
            `data.row`: its cells are lists, structs or bytes.
    """
    import pyarrow as pa

    command = [sys.executable, "-P", "-m", __name__, str(path), json.dumps(columns), json.dumps([*lists])]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)}
    whole = False
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said
        ) as process,
    ):
        try:
            with pa.ipc.open_stream(process.stdout) as batches:
                yield from batches
            whole = True
        except (pa.ArrowInvalid, OSError):  # it has ended early, and said why
            pass
        finally:
            if not whole:
                process.kill()
        if process.wait() or not whole:
            said.seek(0)
            raise _error(path, said.read(4096))


def _error(path: Path, said: bytes) -> UserError:
    try:
        key, message = json.loads(said)
    except ValueError:
        return UserError("data.format", f"{path}: could not be read as parquet: the decoder crashed")
    return UserError(key, message)


def _decode(path: str, columns: Sequence[str], lists: Collection[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from lora_pl.data.rows import require_columns

    with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        require_columns(columns, file.schema_arrow.names, path)
        stored = {column: file.schema_arrow.field(column).type for column in columns}
        types = [_type(stored[column], f"{path}, {column}", column in lists) for column in columns]
        schema = pa.schema(list(zip(columns, types, strict=True)))
        with pa.ipc.new_stream(sys.stdout.buffer, schema) as written:
            for batch in file.iter_batches(ROWS, columns=list(dict.fromkeys(columns)), use_threads=False):
                arrays = [batch.column(column).cast(type) for column, type in zip(columns, types, strict=True)]
                plain = pa.record_batch(arrays, schema=schema)
                step = max(1, plain.num_rows * BYTES // max(plain.nbytes, BYTES))
                for start in range(0, plain.num_rows, step):
                    written.write_batch(plain.slice(start, step))


def _type(type: Any, where: str, is_list: bool = False) -> Any:
    """The type of a column's texts or numbers, without a dictionary, which one row could repeat 16 MiB of."""
    import pyarrow as pa

    is_listed = pa.types.is_list(type) or pa.types.is_large_list(type)
    if is_list and is_listed:
        return pa.list_(_type(type.value_type, where))
    plain = type.value_type if pa.types.is_dictionary(type) else type
    if pa.types.is_nested(plain) or "binary" in str(plain):
        hint = NO_TEXT if is_listed else ""
        raise UserError("data.row", f"{where}: expected texts, got {plain}{hint}")
    return plain


def main() -> None:
    """Write columns (`argv[2]`, JSON; in `argv[3]` those with lists) of the file `argv[1]` to standard output; an error
    to standard error."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    path = sys.argv[1]
    try:
        _decode(path, *map(json.loads, sys.argv[2:]))
    except UserError as error:
        key, message = error.key, error.message
    except MemoryError:
        key, message = "data.format", f"{path}: could not be read as parquet in {MEMORY >> 20:,} MiB of memory"
    except Exception as error:  # whatever the decoder raises
        key, message = "data.format", f"{path}: could not be read as parquet: {first_line(error)[:150]}"
    else:
        return
    json.dump([key, message[:1000]], sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
