"""A data set of the Hub, `owner/name`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vqvae2.config.models import DataConfig
from vqvae2.data.errors import DataError
from vqvae2.data.labels import assign_splits
from vqvae2.data.listing import Listing, Stream
from vqvae2.data.split_names import TRAIN
from vqvae2.data.tables import OpenedTable, Tables, list_rows, reading, stream_rows, type_and_line

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class HubDataset:
    """A data set of the Hub; its decoded images are reused without asking the Hub whether it changed.

    Attributes:
        name: its id, `owner/name`.
    """

    name: str

    @property
    def identity(self) -> str:
        """The id."""
        return f"hub {self.name}"

    def list_images(self, config: DataConfig, scratch: Path) -> Listing | Stream:
        """The rows of its splits, downloaded, or streamed with `config.streaming`."""
        with reading(self.name):
            opened = self._open(config)
            if config.streaming:
                return stream_rows(opened, self.name, config)
            return list_rows(opened, self.name, config)

    def _open(self, config: DataConfig) -> Tables:
        import datasets

        revision = self._revision()
        loaded = datasets.load_dataset(self.name, split=config.split, streaming=config.streaming)
        if config.split:
            return Tables([OpenedTable(loaded, None)], revision)
        splits: dict[str, int | None] = {
            **assign_splits({split.lower(): split for split in loaded}, None, self.name)
        }
        if not splits:
            only = [split for split in loaded if split.lower() in TRAIN] or list(loaded)
            if len(only) != 1:
                raise DataError(f"{self.name!r} has the splits {', '.join(only)}: choose one with data.split")
            splits = {only[0]: None}
        return Tables([OpenedTable(loaded[split], held) for split, held in splits.items()], revision)

    def _revision(self) -> str:
        """The newest commit; when offline the one that was downloaded last, "" if there is none.

        One request with a time limit replaces the half minute for which `datasets` would try again and again.
        """
        from huggingface_hub import HfApi, constants
        from huggingface_hub.file_download import repo_folder_name

        if constants.HF_HUB_OFFLINE:
            folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=self.name, repo_type="dataset")
            last = folder / "refs" / "main"
            return last.read_text(encoding="ascii").strip() if last.is_file() else ""
        try:
            return HfApi().dataset_info(self.name, timeout=10).sha or ""
        except Exception as error:
            raise DataError(
                f"no folder or file {self.name!r}, and the Hub data set of this name cannot be reached "
                f"({type_and_line(error)}); HF_HUB_OFFLINE=1 uses a copy downloaded before"
            ) from error


def recognise_hub(data: str, run: Path) -> HubDataset | None:
    """The data set of the Hub, if `data` has the form `owner/name`."""
    return HubDataset(data) if _HUB_ID.fullmatch(data) else None
