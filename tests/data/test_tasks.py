import pytest

from lora_pl.data.tasks import GLUE_TASKS, get_task
from lora_pl.errors import UserError


def test_all_nine_tasks_have_a_row():
    assert sorted(GLUE_TASKS) == ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli"]
    assert [name for name, task in GLUE_TASKS.items() if task.is_regression] == ["stsb"]
    assert len(GLUE_TASKS["mnli"].validation) == 2
    assert all(len(task.columns) == len(task.file_columns) for task in GLUE_TASKS.values())


@pytest.mark.parametrize(("name", "near"), [("SST-2", "sst2"), ("mnl", "mnli"), ("qnil", "qnli")])
def test_an_unknown_task_names_the_nearest(name, near):
    with pytest.raises(UserError, match=f"did you mean {near}"):
        get_task(name)
