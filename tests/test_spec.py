from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import hyperlens as hl
from hyperlens.errors import InputError
from hyperlens.runs import spec
from hyperlens.runs.spec import Study, compare_studies, parse_study, read_study
from hyperlens.tasks import spec as task_spec

STUDIES = Path(__file__).resolve().parent.parent / "studies"


@pytest.mark.parametrize("module", [spec, task_spec])
def test_every_field_of_a_study_is_documented(module):
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ClassDef):
            for field, after in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(field, ast.AnnAssign) and "ClassVar" not in ast.unparse(field.annotation):
                    assert isinstance(after, ast.Expr) and len(ast.literal_eval(after.value)) > 20, ast.unparse(field)


def test_a_file_says_all_that_python_can(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        """
name = "mine"
limit = 3
[[models]]
source = "Qwen/Qwen2.5-0.5B"
dtype = "bfloat16"
[[models]]
source = "./tuned/"
[[lenses]]
focal_depths = [4, 0]
readings = ["probability", "entropy"]
[[tasks]]
name = "math"
levels = [1]
[[tasks]]
name = "aime"
few_shot = 2
[[contrasts]]
name = "mathematics"
easy = "math"
hard = "aime"
"""
    )
    study = Study(
        "mine",
        (hl.ModelSpec("Qwen/Qwen2.5-0.5B", dtype="bfloat16"), hl.ModelSpec("./tuned/")),
        (hl.TaskSpec("math", levels=(1,)), hl.TaskSpec("aime", few_shot=2)),
        (hl.LensSpec(focal_depths=(4, 0), readings=("probability", "entropy")),),
        (hl.ContrastSpec("math", "aime", "mathematics"),),
        limit=3,
        root=str(tmp_path),
    )
    assert read_study(file) == study
    assert [model.name for model in study.models] == ["Qwen/Qwen2.5-0.5B", "tuned"]
    assert parse_study(study.describe(), str(tmp_path)) == study
    (tmp_path / "tuned").mkdir()
    assert study.locate_model("./tuned/") == str(tmp_path / "tuned") and study.locate_model("Qwen/x") == "Qwen/x"
    assert study.locate("data") == str(tmp_path / "data") and study.locate("") == ""


def test_the_studies_that_come_with_us_can_be_read():
    demo, paper = read_study(STUDIES / "demo.toml"), read_study(STUDIES / "paper.toml")
    assert [task.name for task in demo.tasks] == ["mathematics", "code", "logic", "knowledge"]
    assert (len(paper.models), len(paper.tasks), len(paper.contrasts)) == (8, 8, 4)
    sides = [side for contrast in paper.contrasts for side in (contrast.easy, contrast.hard)]
    assert sorted(sides) == sorted(task.name for task in paper.tasks)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("limt = 5", 'the field limt is not there; did you mean "limit"?'),
        ('[[tasks]]\nname = "math"\nfew_shots = 2', r'field tasks\[0\].few_shots is not there; did you mean "few_shot"'),
        ('[[models]]\nsauce = "x"', 'did you mean "source"'),
        ('[[lenses]]\ncontext = "jmp"', '"jmp" is not a context; choose from jump, cached'),
        ('limit = "many"', 'limit is "many", which cannot be used'),
        ('[tasks]\nname = "logic"', r"tasks is one table; write it as \[\[tasks\]\]"),
        ('[[lenses]]\nreadings = ["mood"]', '"mood" is not a reading; choose from probability'),
        ("seed = -1", "the seed is -1; give a number from 0 up"),
        ('name = "../x"', 'the study is called "../x"; give a name that a folder can have'),
        ("limit = true", "limit is true, which cannot be used"),
        ("limit = 0", "limit is 0; give a number from 1 up"),
        ("[[tasks]]\nlimit = 5", r"the field tasks\[0\].name is missing"),
        ('[[tasks]]\nname = "a"\n[[tasks]]\nname = "a"', 'two of the tasks are called "a"'),
        ('[[tasks]]\nname = "a"\nread = "mind"', 'task "a" reads "mind"; choose from target'),
        ('too_long = "cut"', 'too_long is "cut"; choose from skip, truncate'),
        ('[[lenses]]\nfocal_depths = "deep"', '"deep" is no focal depth; give numbers, auto or sweep'),
        ("[[lenses]]\nfocal_depths = [-1]", "focal depth -1 is not a whole number from 0 up"),
        ("[[lenses]]\nfocal_depths = [0.5]", "which cannot be used"),
        ('[[contrasts]]\neasy = "logic"\nhard = "cod"', 'names the task "cod", which is not there; did you mean "code"'),
        ('[[contrasts]]\neasy = "logic"\nhard = "logic"', "compares logic with itself"),
        ('[[models]]\nsource = "a"\ntensor_parallel = 2\ndevice_map = "auto"', "both device_map and tensor_parallel"),
        ('[[lenses]]\nkind = "tunned"', 'is of kind "tunned"; choose from hyper, logit, tuned'),
        ('[[lenses]]\nkind = "tuned"', 'lens "tuned" is a tuned lens without a path; give the folder'),
        ('[[lenses]]\npath = "lens"', 'lens "jump" has a path, which only a tuned lens has'),
        ("[[lenses]]\ntransfer = true", 'lens "jump" has transfer, which only a tuned lens has'),
        ('[[lenses]]\nkind = "logit"\nfocal_depths = [2]', 'lens "logit" is the logit lens, which passes no layer'),
        ('[[lenses]]\nbetween = [3]\ncontext = "cached"', 'lens "cached" has layers in between, .* give it the context jump'),
        ("[[lenses]]\nbetween = [0, 3]", r"the layers in between are \[0, 3\]; give their numbers from 1 up"),
        ('[[lenses]]\nfocal_depths = "trained"', '"trained" is no focal depth; give numbers, auto or sweep'),
        ("[[lenses]]\n[[lenses]]\nbetween = [3]", 'two of the lenses are called "jump"'),
        ("limit =", "is not TOML"),
        ("when = 2026-11-20", "holds a date or time"),
        ("tasks = []", "the study has no tasks"),
    ],
)
def test_a_field_that_cannot_be_meant_is_refused_in_one_sentence(tmp_path, text, said):
    file = tmp_path / "study.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=said) as refused:
        read_study(file)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_study(tmp_path / "none.toml")


def test_what_differs_between_two_studies_is_named():
    one = Study(limit=5, tasks=(hl.TaskSpec("logic"),))
    assert compare_studies(one.describe(), Study(limit=5, tasks=(hl.TaskSpec("logic"),), root="elsewhere").describe()) == []
    other = Study(limit=6, tasks=(hl.TaskSpec("logic", limit=2),))
    assert compare_studies(one.describe(), other.describe()) == [
        "tasks[logic].limit is null there and 2 here",
        "limit is 5 there and 6 here",
    ]
    turned = Study(tasks=(hl.TaskSpec("code"), hl.TaskSpec("logic")))
    assert compare_studies(Study(tasks=turned.tasks[::-1]).describe(), turned.describe()) == [
        'tasks is ["logic", "code"] there and ["code", "logic"] here'
    ]
