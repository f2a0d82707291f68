"""A collection as a command opens it, and what the command leaves: a table, and a page of pictures beside."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pcl_ray.errors import ConfigError
from pcl_ray.support.text import count

if TYPE_CHECKING:
    from pcl_ray.embedding.collection import Collection
    from pcl_ray.embedding.index import SearchIndex
    from pcl_ray.embedding.memberships import Membership
    from pcl_ray.report.collection_page import PictureGroup

MOST_GROUPS, MOST_PICTURES = 60, 12  # groups of a page, pictures of a group
_SHOWN = 10  # rows that are printed
_SAY_S = 5.0


def add_folder(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument("collection", type=Path, metavar="DIR", help="what `pcl-ray embed … --out DIR` wrote")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help=f"the table, .csv or .parquet, the page beside it as .html; left out: DIR/{name}.csv",
    )


def add_kmeans(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kmeans",
        action="store_true",
        help="clusters of this collection's own embeddings instead of the run's prototypes",
    )


class OpenedCollection:
    """A collection with its index, and where the results go."""

    def __init__(self, arguments: argparse.Namespace, name: str):
        folder = Path(os.path.abspath(arguments.collection.expanduser()))
        self.table: Path = arguments.out or arguments.collection / f"{name}.csv"
        if self.table.suffix.lower() not in (".csv", ".parquet"):
            raise ConfigError(f"--out {str(self.table)!r}: a .csv or .parquet file")
        if not self.table.parent.is_dir() and arguments.out:
            raise ConfigError(f"--out {str(self.table)!r}: there is no folder {str(self.table.parent)!r}")
        from pcl_ray.embedding import index
        from pcl_ray.embedding.collection import Collection

        self.collection: Collection = Collection(folder)
        self.index: SearchIndex = index.opened(self.collection, _say)
        self._last = 0.0

    def memberships(self, own: bool) -> list[Membership]:
        from pcl_ray.embedding import memberships

        return memberships.memberships(self.collection, self.index, own=own, say=_say)

    def progress(self, done: int, total: int) -> None:
        """A line every few seconds."""
        now = time.monotonic()
        self._last = self._last or now
        if now - self._last >= _SAY_S and done < total:
            self._last = now
            _say(f"{done:,} of {count(total, 'image')}")

    @staticmethod
    def print_rows(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
        for row in rows[:_SHOWN]:
            print(
                "  ".join(
                    f"{row[name]:.4f}" if isinstance(row[name], float) else str(row[name]) for name in names
                )
            )
        if len(rows) > _SHOWN:
            print(f"… {len(rows) - _SHOWN:,} more in the table")

    def write(
        self,
        rows: Sequence[Mapping[str, Any]],
        title: str,
        lead: str,
        groups: Sequence[PictureGroup],
        names: Sequence[str] = (),
    ) -> None:
        """Writes the table of these rows, and the page. names: of the columns, where there may be no rows."""
        columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else names)}
        self.write_columns(columns, title, lead, groups)

    def write_columns(
        self, columns: Mapping[str, Any], title: str, lead: str, groups: Sequence[PictureGroup]
    ) -> None:
        """Raises ConfigError where one of the two cannot be written."""
        from pcl_ray.embedding.inputs import ImageReader
        from pcl_ray.report import collection_page

        page = self.table.with_suffix(".html")
        try:
            _write_table(columns, self.table)
            reader = ImageReader(self.collection.manifest.column)
            collection_page.write(page, f"{title}: {self.collection.folder.name}", lead, groups, reader)
        except OSError as error:
            raise ConfigError(
                f"{error.filename or self.table} cannot be written ({error.strerror}); give another --out"
            ) from None
        print(f"table       {self.table}\npage        {page}")


def _write_table(columns: Mapping[str, Any], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    from pcl_ray.support.files import atomic_file

    table = pa.table(dict(columns))
    with atomic_file(path) as partial:
        if path.suffix.lower() == ".csv":
            pyarrow.csv.write_csv(table, partial, pyarrow.csv.WriteOptions(quoting_style="needed"))
        else:
            pyarrow.parquet.write_table(table, partial)


def check_count(amount: int) -> None:
    if amount < 1:
        raise ConfigError(f"--count {amount}: 1 or more")


def first_of(shown: int, total: int) -> str:
    return f"The first {shown:,} of {total:,} groups are shown." if shown < total else ""


def short_name(path: str) -> str:
    """The last folder and the name."""
    return "/".join(path.split("/")[-2:])


def file_name(path: str) -> str:
    return path.rpartition("/")[2]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
