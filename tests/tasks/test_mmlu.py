"""MMLU: letters, a subject's own preamble and examples in their order, subjects and categories."""

import zipfile

import pytest

from fmjax.errors import DataError, InputError
from fmjax.tasks.catalogue import get_task
from fmjax.tasks.few_shot import FewShot
from fmjax.tasks.mmlu import CATEGORIES, SUBJECTS
from fmjax.tasks.protocol import ScoreAnswer, TaskContext


def data(folder, subjects=("anatomy", "astronomy"), answer="1"):
    (folder / "eval_mmlu").mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "eval_mmlu" / "mmlu_csv.zip", "w") as file:
        for subject in subjects:
            for split, count in (("dev", 3), ("test", 2)):
                rows = [f'"{subject} {split} {i}, then? ",w,x,y,z,{i % 3}\n' for i in range(count - 1)]
                rows.append(f"last,w,x,y,z,{answer}\n")
                text = "question,choice0,choice1,choice2,choice3,answer\n" + "".join(rows)
                file.writestr(f"{split}/{subject}_{split}.csv", text)
    return TaskContext(folder)


def test_subjects_are_57_in_four_categories():
    assert len(SUBJECTS) == len(set(SUBJECTS)) == 57 and sum(map(len, CATEGORIES.values())) == 57
    assert get_task("mmlu_stem").subjects == CATEGORIES["stem"] and get_task("mmlu").subjects == SUBJECTS
    with pytest.raises(InputError, match="unknown task 'mmlu_alchemy'"):
        get_task("mmlu_alchemy")


def test_prompts_begin_with_the_subject_s_preamble_and_first_examples(tmp_path):
    context, task = data(tmp_path), get_task("mmlu_anatomy")
    document = task.documents(context)[0]
    few = FewShot.make(task, 2, 0, context)
    want = (
        "The following are multiple choice questions (with answers) about anatomy.\n\n"
        "anatomy dev 0, then?\nA. w\nB. x\nC. y\nD. z\nAnswer: A\n\n"
        "anatomy dev 1, then?\nA. w\nB. x\nC. y\nD. z\nAnswer: B\n\n"
        "anatomy test 0, then?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    )
    assert [request.context for request in few.requests(document)] == [want] * 4
    assert [request.continuation for request in few.requests(document)] == [" A", " B", " C", " D"]
    assert FewShot.make(task, 2, 7, context).requests(document) == few.requests(document)  # nothing is drawn
    assert len(FewShot.make(task, 3, 0, context).examples(document)) == 3
    with pytest.raises(InputError, match="num_shots=4 takes .*, for 'anatomy', and there are 3"):
        FewShot.make(task, 4, 0, context).examples(document)
    zero = FewShot.make(task, None, 0, context).requests(document)
    assert zero[0].context.startswith("The following are") and "dev" not in zero[0].context


def test_accuracy_by_subject(tmp_path):
    context, task = data(tmp_path), get_task("mmlu")
    task.subjects = ("anatomy", "astronomy")
    documents = task.documents(context)
    assert [document.gold for document in documents] == [0, 1, 0, 1]
    likelihoods = [(-1, -1, -2, -3), (-1, -1, -2, -3), (-4, -3, -2, -1), (-9, -1, -9, -9)]
    rows = [
        task.statistics(document, [ScoreAnswer(float(x), False, 1) for x in values]) | {"documents": 1.0}
        for document, values in zip(documents, likelihoods)
    ]
    totals = {name: sum(row.get(name, 0) for row in rows) for name in {name for row in rows for name in row}}
    # Ties go to the first letter: right, wrong; then wrong, right.
    assert task.reduce(totals) == {"acc": 0.5, "acc/anatomy": 0.5, "acc/astronomy": 0.5}
    assert {task.cluster(document) for document in documents} == {None}


def test_damaged_data_are_refused(tmp_path):
    context = data(tmp_path, answer="B")
    with pytest.raises(DataError, match="test/anatomy_test.csv, question 2: expected an answer of 0 to 3, got 'B'"):
        get_task("mmlu_anatomy").documents(context)
    with pytest.raises(DataError, match=r"has no 'test/virology_test.csv' \(1 of 1 files are missing\)"):
        get_task("mmlu_virology").documents(context)
    (tmp_path / "eval_mmlu" / "mmlu_csv.zip").write_bytes(b"no zip")
    with pytest.raises(DataError, match="mmlu_csv.zip' cannot be read"):
        get_task("mmlu_anatomy").documents(context)
