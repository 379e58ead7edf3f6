"""What the other tests lean on."""

import logging
import os
import signal
import warnings

import pytest
import torch

from tests.support import process_state, read_once, rounding, run_cli, run_in_process


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("terms", [4, 64, 4096])
def test_rounding_covers_the_order_of_a_sum_and_not_a_missing_term(terms, dtype):
    summands = torch.randn(200, terms, dtype=dtype) * 1000
    forward, backward = summands.cumsum(1)[:, -1], summands.flip(1).cumsum(1)[:, -1]
    close = rounding(terms, dtype, scale=summands.cumsum(1).abs().max().item())
    assert (forward - backward).abs().max() < close
    assert (forward - summands[:, 1:].sum(1)).abs().median() > close


def test_a_command_in_this_process_is_the_command_in_a_fresh_one(checkpoint, tmp_path):
    predict = ["predict", "--ckpt_path", str(checkpoint)]
    here, fresh = (run(predict, tmp_path, text_input="the film is göod\n") for run in (run_in_process, run_cli))
    assert (here.returncode, here.stdout, here.stderr) == (fresh.returncode, fresh.stdout, fresh.stderr)
    assert here.stdout


def test_what_is_read_once_is_a_copy_and_no_older_than_its_files(tmp_path):
    read = read_once(lambda name, **options: [(tmp_path / "config.json").read_text(), options])
    (tmp_path / "config.json").write_text("1")
    read(str(tmp_path), dropout=0.1).clear()
    assert read(str(tmp_path), dropout=0.1) == ["1", {"dropout": 0.1}]
    assert read(str(tmp_path), dropout=0.2) == ["1", {"dropout": 0.2}]
    (tmp_path / "config.json").write_text("2")
    assert read(str(tmp_path), dropout=0.1) == ["2", {"dropout": 0.1}]


def test_the_process_is_afterwards_as_it_was():
    environment = dict(os.environ)
    folder, handler, logger = os.getcwd(), signal.getsignal(signal.SIGTERM), logging.getLogger("lightning.pytorch")
    level, filters, draw = logger.level, warnings.filters[:], torch.get_rng_state()
    with process_state():
        os.environ["PL_GLOBAL_SEED"] = "12345"
        os.chdir("/")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        logger.setLevel(logging.CRITICAL)
        warnings.simplefilter("ignore")
        torch.rand(3)
    assert dict(os.environ) == environment
    assert (os.getcwd(), signal.getsignal(signal.SIGTERM), logger.level) == (folder, handler, level)
    assert warnings.filters == filters
    assert torch.equal(torch.get_rng_state(), draw)
