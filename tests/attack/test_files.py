"""Kills within writes, and outputs that are not files."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lora_pl.errors import UserError
from lora_pl.predictions.output import is_stream, opened, require_output
from lora_pl.predictions.parts import Parts
from lora_pl.storage.write_whole import recover, write_folder_whole, write_whole
from tests.processes import run

KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from lora_pl.storage import write_whole as module

def killed(after):
    count, own = 0, os.getpid()
    os.getpid = lambda: 7  # as in containers

    def killing(owner, name):
        call = getattr(owner, name)

        def replaced(*args, **kwargs):
            nonlocal count
            for moment in range(2):  # before and after
                count += 1
                if count == after:
                    os.kill(own, signal.SIGKILL)
                result = call(*args, **kwargs) if moment == 0 else result
            return result

        setattr(owner, name, replaced)

    for name in ("replace", "mkdir", "rmdir", "unlink", "link", "fsync", "open"):
        killing(os, name)
    killing(shutil, "rmtree")
    killing(module.fcntl, "flock")
"""
WRITE = (
    KILLED
    + """
kind, path = sys.argv[1], Path(sys.argv[2])
killed(int(sys.argv[3]))

def fill(folder):
    for name in ("a", "b"):
        (folder / name).write_text("new")

if kind == "folder":
    module.write_folder_whole(path, fill)
else:
    keep = path.with_name("previous") if kind == "keep" else None
    module.write_whole(path, lambda beside: beside.write_text("new"), keep=keep)
"""
)
EXPORT = (
    KILLED
    + """
import torch
from lora_pl import LoRAClassifier
from lora_pl.formats.exporting import export_checkpoint
from lora_pl.formats.importing import checkpoint_of
from lora_pl.formats.sentences import Sentences

def export(overwrite):
    export_checkpoint("x.ckpt", "out", "adapter", sentences=Sentences(("a film",), (), "one"), overwrite=overwrite)

def export_killed(after, overwrite):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        killed(after)
        export(overwrite)
        code = 0
    finally:
        os._exit(code)

torch.set_num_threads(1)  # a fork has no other threads
torch.save(checkpoint_of(LoRAClassifier(encoder=sys.argv[1])), "x.ckpt")
export(False)  # imports what the forks need
for overwrite in (True, False):
    if not overwrite:
        shutil.rmtree("out")
    for after in range(1, 1000, int(sys.argv[2])):
        code = export_killed(after, overwrite)
        if code == 0:
            break
        assert code == -signal.SIGKILL, code
        whole = Path("out").exists()
        assert whole or not overwrite or list(Path().glob(".out.*/old")), "the earlier export is lost"
        if whole and not overwrite:
            module.recover(Path("out"))
            assert sorted(os.listdir("out")) == ["README.md", "adapter.safetensors", "lora_pl.json"]
            shutil.rmtree("out")
    assert sorted(os.listdir()) == ["out", "x.ckpt"], os.listdir()
"""
)


ENCODER = Path(__file__).resolve().parents[1] / "fixtures" / "before" / "encoder"


def content(path: Path) -> object:
    return {inner.name: inner.read_text() for inner in path.iterdir()} if path.is_dir() else path.read_text()


@pytest.mark.parametrize("kind", ["file", "keep", "folder"])
@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.attack)])
def test_a_kill_at_any_call_of_a_write(kind, step, tmp_path):
    """The old or the new content is there, whole, and nothing beside it."""
    old, new = ({"c": "old"}, {"a": "new", "b": "new"}) if kind == "folder" else ("old", "new")
    for after in range(3, 1000, step):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        path = tmp_path / "x"
        if kind == "folder":
            path.mkdir()
        (path / "c" if kind == "folder" else path).write_text("old")
        code = subprocess.run([sys.executable, "-c", WRITE, kind, str(path), str(after)], check=False).returncode
        assert code in (0, -signal.SIGKILL)
        recover(path)
        assert content(path) in (old, new)
        assert {inner.name for inner in tmp_path.iterdir()} <= {"x", "previous"}
        write_folder_whole(path, lambda folder: (folder / "a").touch()) if kind == "folder" else write_whole(
            path, Path.touch
        )
        assert content(path) in ({"a": ""}, "")
        if code == 0:
            break
    else:
        pytest.fail("never whole")


@pytest.mark.parametrize("step", [40, pytest.param(1, marks=pytest.mark.attack)])
def test_a_kill_at_any_call_of_an_export(step, tmp_path):
    """The same command succeeds afterwards, under the same process number; an earlier export is never lost."""
    (tmp_path / "own").mkdir()
    run(tmp_path, exported, str(ENCODER), str(step))


def exported(*arguments: str) -> None:
    os.chdir("own")
    sys.argv[1:] = arguments
    exec(EXPORT, {})


def test_a_folders_files_can_be_read_by_whoever_may_read_the_folder(tmp_path):
    def fill(folder: Path) -> None:
        (folder / "weights").touch(0o600)
        (folder / "below").mkdir()
        (folder / "below" / "weights").touch(0o600)

    write_folder_whole(tmp_path / "x", fill)
    allowed = (tmp_path / "x").stat().st_mode & 0o666
    assert allowed & 0o600 == 0o600
    for path in ("weights", "below/weights"):
        assert (tmp_path / "x" / path).stat().st_mode & 0o777 == allowed


def test_a_signal_between_two_renames_loses_nothing(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "old").touch()
    replace = os.replace

    def interrupted(source, target):
        replace(source, target)
        if Path(source) == tmp_path / "x":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", interrupted)
        write_folder_whole(tmp_path / "x", lambda folder: None)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["x", "x/old"]


def test_writers_at_once_leave_each_other_alone(tmp_path):
    errors = []

    def write(number: int) -> None:
        try:
            for _ in range(20):
                write_whole(tmp_path / "x", lambda beside: beside.write_text(str(number) * 1000))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(set((tmp_path / "x").read_text())) == 1
    assert os.listdir(tmp_path) == ["x"]


def test_what_belongs_to_another_target_stays(tmp_path):
    (tmp_path / ".x.b.abcdefgh.unfinished").mkdir()
    (tmp_path / ".x.7").touch()
    write_whole(tmp_path / "x", Path.touch)
    assert sorted(os.listdir(tmp_path)) == [".x.7", ".x.b.abcdefgh.unfinished", "x"]
    recover(tmp_path / "x.b")
    assert sorted(os.listdir(tmp_path)) == [".x.7", "x"]


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "link").symlink_to("target")
    write_whole(tmp_path / "link", lambda beside: beside.write_text("new"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


def test_only_regular_files_are_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null"), tmp_path):
        with pytest.raises(OSError, match="not replaced"):
            write_whole(path, Path.touch)
    with pytest.raises(OSError, match="not replaced"):
        write_folder_whole(tmp_path / "pipe", lambda folder: None)


def test_pipes_and_devices_are_streams(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    for output in (str(tmp_path / "pipe"), "/dev/null"):
        require_output(output)
        assert is_stream(output)
        with opened(output) as file:
            file.write(b"row\n")
    reader.join()
    assert read == [b"row\n"]
    assert not is_stream(str(tmp_path / "new"))


@pytest.mark.parametrize("output", ["", ".", "x.txt", "link", "hard", "./x.txt", "none/y", "pipe.parquet"])
def test_outputs_that_are_refused(output, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x.txt").touch()
    Path("link").symlink_to("x.txt")
    os.link("x.txt", "hard")
    os.mkfifo("pipe.parquet")
    with pytest.raises(UserError) as error:
        require_output(output, "x.txt")
    assert error.value.key == "output"


@pytest.mark.parametrize("kind", ["another's", "with more", "a link", "a file", "another's plan"])
def test_a_folder_of_parts_that_is_anothers_is_left_alone(kind, tmp_path):
    folder = tmp_path / "y.parts"
    if kind == "a file":
        folder.touch()
    elif kind == "a link":
        (tmp_path / "z").mkdir()
        folder.symlink_to("z")
    else:
        folder.mkdir()
        (folder / "mine").touch()
        if kind != "another's":
            (folder / "plan.json").write_text('{"texts": 1}' if kind == "with more" else '{"mine": 1}')
    before = sorted(map(str, tmp_path.rglob("*")))
    with pytest.raises(UserError) as error:
        Parts(str(tmp_path / "y"), "{}").prepare()
    assert error.value.key == "output"
    assert sorted(map(str, tmp_path.rglob("*"))) == before


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_standard_streams(closed):
    done = subprocess.run(f"{sys.executable} -m lora_pl --version {closed}", shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_leaves():
    command = f"{sys.executable} -m lora_pl --help | true"
    assert subprocess.run(command, shell=True, capture_output=True, text=True).stderr == ""
