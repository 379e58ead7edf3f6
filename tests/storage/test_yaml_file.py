import pytest

from lora_pl.errors import UsageError
from lora_pl.storage.yaml_file import read_options


def test_the_end_of_a_long_file_is_not_lost(tmp_path):
    """Bounded in bytes: of letters that take two, the first MiB has fewer than a MiB of characters."""
    path = tmp_path / "x.yaml"
    path.write_text("r: 10\n#" + "é" * 600_000 + "\nr: 4\n", encoding="utf-8")
    with pytest.raises(UsageError, match="expected at most 1,048,576 bytes"):
        read_options(path)
