from __future__ import annotations

import json
import random
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from hyperlens.errors import InputError
from hyperlens.tasks import GRADED, LEVELS, VARIANTS, Variant, check_levels, find_task
from hyperlens.tasks.graded.code import execute
from hyperlens.tasks.graded.graded import UNSEEN_FROM
from hyperlens.tasks.graded.knowledge import FACTS
from hyperlens.tasks.graded.mathematics import DIAL, turn
from hyperlens.training.recipe import build_tokenizer

AUDIT = json.loads((Path(__file__).parent.parent / "docs" / "shortcuts.json").read_text(encoding="utf-8"))
ALL_TASKS = pytest.mark.parametrize("name", GRADED)


@ALL_TASKS
@pytest.mark.parametrize("variant", VARIANTS)
def test_samples_are_the_same_for_the_same_seed(name, variant):
    task = GRADED[name]
    drawn = task.samples(8, 1, variant)
    assert drawn == task.samples(8, 1, variant) != task.samples(8, 2, variant)
    assert len({sample.prompt for sample in drawn}) == len({sample.id for sample in drawn}) == 8 * len(LEVELS)
    assert {sample.task for sample in drawn} == {name if variant == "matched" else f"{name}:{variant}"}


@ALL_TASKS
@pytest.mark.parametrize("level", LEVELS[1:])
def test_no_chain_that_is_evaluated_is_ever_trained_on_from_two_steps_on(name, level):
    """However the question is put: in whatever variant, behind whatever aside."""
    task, rng = GRADED[name], random.Random(level)
    for wide in (False, True):
        evaluated = {task.draw(level, rng, wide, held_out=True).cores[-1] for _ in range(600)}
        trained = {task.draw(level, rng, wide, held_out=False).cores[-1] for _ in range(2000)}
        assert evaluated and trained and not evaluated & trained


@ALL_TASKS
def test_no_prompt_that_is_evaluated_is_ever_trained_on_from_two_steps_on(name):
    task, rng = GRADED[name], random.Random(0)
    for variant in VARIANTS:
        evaluated = {task.ask(level, rng, VARIANTS[variant], held_out=True)[0] for level in (2, 3) for _ in range(60)}
        trained = {task.ask(level, rng, VARIANTS[variant], held_out=False)[0] for level in (2, 3) for _ in range(600)}
        assert not evaluated & trained


@ALL_TASKS
def test_single_steps_are_all_seen_in_training_which_is_declared(name):
    task, rng = GRADED[name], random.Random(1)
    assert UNSEEN_FROM == 2
    single = {task.draw(1, rng, False, held_out=True).cores[-1] for _ in range(6000)}
    assert single == {task.draw(1, rng, False, held_out=False).cores[-1] for _ in range(6000)}


@ALL_TASKS
@pytest.mark.parametrize("level", LEVELS)
def test_answers_are_equally_likely_at_every_level(name, level):
    task, rng = GRADED[name], random.Random(level)
    answers = [task.draw_chain(level, rng, False).values[-1] for _ in range(4000)]
    assert set(answers) == set(task.answers)
    expected = len(answers) / len(task.answers)
    assert all(abs(answers.count(kind) - expected) < 5 * expected**0.5 for kind in task.answers)


@ALL_TASKS
def test_no_answer_is_the_beginning_of_another(name):
    tokenizer = build_tokenizer()
    answers = [tuple(tokenizer(answer, add_special_tokens=False)["input_ids"]) for answer in GRADED[name].answers]
    assert not [a for a in answers for b in answers if a != b and b[: len(a)] == a]


def test_some_answers_have_several_tokens():
    tokenizer = build_tokenizer()
    lengths = {len(tokenizer(answer, add_special_tokens=False)["input_ids"]) for answer in GRADED["mathematics"].answers}
    assert lengths == {1, 2}


@ALL_TASKS
def test_prompts_are_equally_long_at_every_level(name):
    """In tokens; without the asides their length follows the level, which is why they are there."""
    tokenizer = build_tokenizer()

    def lengths(variant):
        rng, how = random.Random(variant), VARIANTS[variant]
        drawn = {level: [GRADED[name].ask(level, rng, how, True)[0] for _ in range(150)] for level in (1, 3, 5)}
        return {level: [len(tokenizer(prompt)["input_ids"]) for prompt in prompts] for level, prompts in drawn.items()}

    matched, plain = lengths("matched"), lengths("plain")
    for level in (3, 5):
        spread = np.std(matched[1] + matched[level])
        assert abs(np.mean(matched[1]) - np.mean(matched[level])) < 4 * spread / 150**0.5
        assert max(plain[1]) < min(plain[level])


@pytest.mark.parametrize("steps", LEVELS)
def test_the_answers_are_what_doing_the_steps_gives(steps):
    rng = random.Random(steps)
    for _ in range(50):
        chain = GRADED["mathematics"].draw_chain(steps, rng, False)
        residue = int(chain.start[0])
        for sign, operand in chain.steps:
            residue = eval(f"{residue} {sign} {operand}") % 13
        assert int(chain.values[-1]) % 13 == residue and int(chain.values[-1]) in DIAL
        prompt, target = GRADED["code"].ask(steps, rng, Variant(), held_out=False)
        program, _, question = prompt.partition(" print ")
        registers = {}
        exec("\n".join(program.split(" ;")).replace("\n ", "\n"), {}, registers)
        assert registers[question.split()[0]] % 8 == int(target)
        chain = GRADED["logic"].draw_chain(steps, rng, False)
        truth = dict(zip(("p", "q"), (word == "true" for word in chain.start[2:]), strict=True))
        for changed, change in chain.steps:
            match change.split():
                case "not", name:
                    truth[changed] = not truth[name]
                case one, "xor", other:
                    truth[changed] = truth[one] != truth[other]
                case one, "iff", other:
                    truth[changed] = truth[one] == truth[other]
        assert chain.values[-1] == str(truth[chain.steps[-1][0]]).lower()
        chain = GRADED["knowledge"].draw_chain(steps, rng, False)
        person = chain.start[0]
        for (relation,) in chain.steps:
            person = FACTS[relation][person]
        assert chain.values[-1] == person


@pytest.mark.parametrize("sign", ["+", "-", "*"])
@pytest.mark.parametrize("operand", range(2, 10))
def test_every_step_of_mathematics_is_a_bijection(sign, operand):
    assert sorted(turn(value, sign, operand) for value in DIAL) == list(DIAL)


@pytest.mark.parametrize("sign", ["+=", "-=", "^=", "*="])
@pytest.mark.parametrize("operand", [1, 3, 5, 7])
def test_every_step_of_code_is_a_bijection(sign, operand):
    assert sorted(execute(value, sign, operand) for value in range(8)) == list(range(8))


def test_the_variants_put_the_same_chain_in_their_own_ways():
    def ask(name, variant):
        return GRADED[name].ask(2, random.Random(3), VARIANTS[variant], held_out=True)

    assert ask("knowledge", "plain")[0].count("'s") == 2 and " but " in ask("knowledge", "matched")[0]
    assert "the " in ask("knowledge", "reworded")[0] and {"guest", "host"} & set(
        ask("knowledge", "wide")[0].replace("'s", " ").split()
    )
    prompt, target = ask("code", "stepwise")
    assert "trace" in prompt and target.count(" then ") == 1
    assert target.split()[-1] == ask("code", "matched")[1].strip()


@ALL_TASKS
def test_written_steps_are_the_values_after_each_step(name):
    chain = GRADED[name].draw(4, random.Random(0), False, True)
    _, target = GRADED[name].ask(4, random.Random(0), Variant(stepwise=True), held_out=True)
    assert target == " " + " then ".join(chain.values)


def test_the_audit_covers_every_cell_with_enough_questions():
    cells = {(row["task"], row["variant"], row["chains"], row["level"]) for row in AUDIT["cells"]}
    assert cells == set(product(GRADED, ("matched", "plain"), ("held out", "all"), LEVELS))
    assert all(row["n"] >= 5000 for row in AUDIT["cells"])


def test_no_order_blind_baseline_answers_from_level_three_on():
    for row in AUDIT["cells"]:
        reached = [value for name, value in row.items() if " " in name]
        assert len(reached) == 4
        if row["level"] >= 3:
            assert max(reached) <= row["chance"] + 0.05, row
    assert AUDIT["faults"] == []


def test_unknown_names_are_refused_with_what_there_is():
    with pytest.raises(InputError, match='no task "chess"; choose from mathematics, code, logic, knowledge'):
        find_task("chess")
    with pytest.raises(InputError, match='"logic" has no variant "long"; choose from matched, plain, stepwise, reworded, wide'):
        find_task("logic:long")
    with pytest.raises(InputError, match="no level 6; choose from 1, 2, 3, 4, 5"):
        check_levels([1, 6])
    assert find_task("logic:plain") == (GRADED["logic"], "plain")
