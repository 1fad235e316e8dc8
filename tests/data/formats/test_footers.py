"""Footers of parquet files are read as pyarrow reads them, and no damage of one ends in anything but an error."""

from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_decision_mamba.data.formats.footers import Footer, chunks

DATA = Path(__file__).parents[1]
WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12}


@pytest.mark.parametrize("path", sorted(DATA.rglob("*.parquet")), ids=lambda path: path.name)
def test_chunks_are_those_of_pyarrow(path: Path) -> None:
    found = pq.read_metadata(path)
    expected = []
    for group in range(found.num_row_groups):
        for column in map(found.row_group(group).column, range(found.num_columns)):
            values = column.num_values * WIDTHS.get(column.physical_type, 0)
            expected.append((column.total_compressed_size, max(column.total_uncompressed_size, values)))
    assert [(chunk.packed, chunk.unpacked) for chunk in chunks(found)] == expected != []


def test_many_columns_and_row_groups(tmp_path: Path) -> None:
    table = pa.table({f"column {number}": [number, -1, 2**40] for number in range(20)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1)
    found = list(chunks(pq.read_metadata(tmp_path / "a.parquet")))
    assert len(found) == 60 and all(chunk.unpacked >= 8 and chunk.packed > 0 for chunk in found)


def test_damage_is_an_error() -> None:
    written = pa.BufferOutputStream()
    pq.read_metadata(DATA / "hopper-tiny-v5.parquet").write_metadata_file(written)
    footer, random = bytearray(written.getvalue().to_pybytes()[4:-8]), Random(0)
    read = 0
    for _ in range(300):
        changed = bytearray(footer)
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
        try:
            Footer(bytes(changed)).struct()
            read += 1
        except (LookupError, ValueError):
            continue
    assert 0 < read < 300
    with pytest.raises(ValueError, match="too many levels"):
        Footer(b"\x1c" * 1000).struct()
