"""The exercises: right answers pass, wrong ones are told apart, unknown ones are described, and whatever a learner's file
does gets a clear word.
"""

import csv
import json
import os
import warnings

import numpy as np
import pytest

import tinyres as tr
from tinyres.cli import main
from tinyres.course import desk
from tinyres.course.checking import check, stopped
from tinyres.course.diagnose import difference, judge
from tinyres.course.exercise import exercises, find, source

ALL = exercises()


@pytest.fixture(autouse=True)
def reference():
    with tr.use_backend("numpy"):
        yield


def groups(exercise):
    """The wrong answers that agree with each wrong answer, itself among them."""
    return {wrong.name: judge(exercise, exercise.answers(wrong.answer)) for wrong in exercise.wrong}


def test_there_are_three_per_chapter_of_all_kinds():
    assert list(ALL) == [f"{chapter}.{k}" for chapter in range(1, 9) for k in (1, 2, 3)]
    assert {exercise.kind for exercise in ALL.values()} == {"fill the gap", "predict", "find the bug"}
    assert len({exercise.title for exercise in ALL.values()}) == 24


@pytest.mark.parametrize("number", ALL)
def test_the_right_answer_passes_and_wrong_ones_are_told_apart(number):
    exercise = ALL[number]
    assert judge(exercise, exercise.answers(exercise.right)).status == "passed"
    found = groups(exercise)
    for name, verdict in found.items():
        assert verdict.status == "wrong" and name in verdict.mistake
        assert verdict.message.endswith(exercise.mistake(name).says)
    messages = {verdict.message for verdict in found.values()}
    assert len(messages) >= 5
    assert len(messages) == len({verdict.mistake for verdict in found.values()})  # joint words if and only if a joint result


@pytest.mark.parametrize("number", ALL)
def test_words_are_short_and_do_not_give_the_answer_away(number):
    exercise = ALL[number]
    assert len(exercise.hints) == len(set(exercise.hints)) == 3
    last = (
        source(exercise.right).strip().splitlines()[-1].strip().removeprefix("return ") if callable(exercise.right) else ""
    )
    for words in [*(wrong.says for wrong in exercise.wrong), *exercise.hints]:
        assert 20 <= len(words) <= 200 and (len(last) < 8 or last not in words)
        assert callable(exercise.right) or repr(exercise.right) not in words


def random_like(value, rng):
    if isinstance(value, tuple):
        return tuple(random_like(part, rng) for part in value)
    return (
        rng.standard_normal(np.shape(value)) * (1 + np.abs(value).mean())
        if not isinstance(value, list)
        else [*value, "noise"]
    )


@pytest.mark.parametrize("number", [n for n in ALL if n != "4.3"])  # (whose answers are True and False)
def test_random_noise_gets_the_generic_diagnosis(number):
    exercise, rng = ALL[number], np.random.default_rng(5)
    noise = [random_like(value, rng) for value in exercise.answers(exercise.right)]
    verdict = judge(exercise, noise)
    assert verdict.status == "wrong" and verdict.mistake == ()
    assert verdict.message not in {wrong.says for wrong in exercise.wrong}


def test_a_check_that_guesses_gets_the_generic_diagnosis():
    exercise = ALL["4.3"]
    guesses = [True, *([True, False, False] * 3)]
    verdict = judge(exercise, guesses)
    assert verdict.mistake == () and "statistics constant" in verdict.message and "no xhat" not in verdict.message
    assert "refused" in judge(exercise, [not guesses[0], *guesses[1:]]).message


@pytest.mark.parametrize("number", ALL)
def test_the_file_to_begin_with_runs_and_is_not_the_answer(number):
    exercise, names = ALL[number], {}
    text = exercise.start()
    assert max(map(len, text.splitlines())) <= 125 and exercise.title in text
    exec(text, names)
    verdict = judge(exercise, exercise.answers(names[exercise.name]))
    assert verdict.status == "wrong"
    assert verdict.mistake == ((exercise.given,) if exercise.given else ()) and (exercise.given or "..." in verdict.message)
    names = {"np": np, "tr": tr, "F": tr.functional}
    exec(exercise.solution(), names)
    assert judge(exercise, exercise.answers(names[exercise.name])).status == "passed"


RIGHT = np.arange(12.0).reshape(3, 4) + 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (RIGHT.T, "of shape (4, 3), where (3, 4) is expected: transposed?"),
        (RIGHT[None], "axis 0, of length 1, is one too many"),
        (np.stack([RIGHT, RIGHT]), "axis 0 is one too many; is it to be summed?"),
        (RIGHT.sum(0), "an axis is missing"),
        (np.full((3, 4), np.nan), "not finite at 12 places"),
        (RIGHT / 4, "0.25 times the right one everywhere: a mean where a sum belongs? 4 is a length"),
        (RIGHT * 3, "3 times the right one everywhere: a sum where a mean belongs? 3 is a length"),
        (-RIGHT, "-1 times the right one everywhere: the sign"),
        (RIGHT[::-1, ::-1], "turned by 180 degrees"),
        (RIGHT[:, ::-1], "mirrored along the last axis"),
        (np.zeros((3, 4)), "zero everywhere"),
        (
            np.where(RIGHT == 7, 0, RIGHT),
            "right at 92% of the places; the first wrong one is at [1, 2], and all lie in row 1",
        ),
        (np.where(np.arange(4) % 3 == 0, 9.5, RIGHT), "the first wrong one is at [0, 0], and all lie at the border"),
        (np.cos(RIGHT), "another direction: the cosine with the right one is"),
        ("four", "'four', where a list or an array is expected"),
        ([[1.0], [2.0, 3.0]], "no array"),
    ],
)
def test_an_unknown_difference_is_described(given, words):
    assert words in difference(given, RIGHT, [np.ones((4, 3))])
    square = RIGHT[:, :3]
    assert "transposed in its last two axes" in difference(square.T, square)


def test_parts_of_an_answer_are_told_apart():
    exercise = ALL["1.2"]
    right = exercise.answers(exercise.right)
    assert "dx and dw are right. db is 7 times" in judge(exercise, [(dx, dw, 7 * db) for dx, dw, db in right]).message
    assert "must return 3 arrays, (dx, dw, db); it returned 2 values" in judge(exercise, [r[:2] for r in right]).message
    assert judge(exercise, exercise.answers(lambda *case: list(exercise.right(*case)))).status == "passed"  # a list will do


def test_several_mistakes_at_once_are_each_told():
    one = judge(ALL["1.2"], ALL["1.2"].answers(lambda x, w, dy: (dy @ w.T, x.T @ dy, dy.sum(0))))
    assert one.mistake == ("w not turned back", "dw transposed") and one.message.startswith("db is right. dx: ")
    three = judge(ALL["4.2"], ALL["4.2"].answers(lambda x, dy, eps: ((dy * x).sum((0, 2, 3)), dy.mean((0, 2, 3)))))
    assert three.mistake == ("x for xhat", "averaged")
    mixed = judge(ALL["4.2"], ALL["4.2"].answers(lambda x, dy, eps: ((dy * x).sum((0, 2, 3)), 5 * dy.mean((0, 2, 3)))))
    assert mixed.mistake == () and "dweight is" in mixed.message


def test_a_number_stands_for_an_array_of_it_in_a_mistake_alone():
    exercise = ALL["1.1"]
    one = judge(exercise, [(da, db, 1) for da, db, _ in exercise.answers(exercise.right)])
    assert one.mistake == ("addition gives 1",) and one.message.startswith("dL/da and dL/db are right. dL/dc is 1")
    assert judge(ALL["3.2"], [0]).status == "wrong"


def test_why_a_predicted_number_is_right_is_told_with_it():
    for exercise in ALL.values():
        if not callable(exercise.right):
            assert exercise.why and exercise.why in judge(exercise, exercise.answers(exercise.right)).message
    assert judge(ALL["3.3"], ALL["3.3"].answers("no")).mistake == ("impossible",)


# --- a learner's file, in a process of its own -----------------------------------------------------------------------

FILES = {
    "def dx(J, ds):\n    return ds + J.T @ ds": ("passed", "no weight"),
    "def dx(J, ds):\n    print('J is', J.shape)\n    return J.T @ ds": ("wrong", "came back through the branch"),
    "import numpy as np\ndef dx(J, ds):\n    ds += J.T @ ds\n    return ds": ("wrong", "writes into its argument ds"),
    "def dx(J, ds):\n    while True:\n        pass": ("error", "Stopped after 1 seconds: does a loop never end?"),
    "while True:\n    print('flood')": ("error", "Stopped after 1 seconds: does a loop never end?"),
    "def dx(J, ds):\n    return 1 / 0": ("error", "ZeroDivisionError in line 2: division by zero"),
    "def dx(J, ds):\n    return dx(J, ds)": ("error", "RecursionError in line 2"),
    "def dx(J):\n    return J": ("error", "takes 1 positional argument but 2 were given"),
    "def dx(J ds):": ("error", "The file is not Python yet: invalid syntax"),
    "\0": ("error", "The file is not Python yet"),
    "import nothing_of_that_name": ("error", "The file does not run. ModuleNotFoundError in line 1"),
    "raise SystemExit": ("error", "The file does not run. SystemExit in line 1: it says no more"),
    "import os\nos._exit(3)": ("error", "The file ended the process (status 3)"),
    "y = 3": ("error", "The file defines no 'dx'; tinyres exercise start 3.1"),
    "dx = 3": ("error", "'dx' is no function any more; it is int"),
    "def dx(J, ds):\n    ...": ("wrong", "dx gave None: is a return missing?"),
    "def dx(J, ds):\n    return ...": ("wrong", "Nothing is filled in yet"),
    "def dx(J, ds):\n    return [object()]": ("wrong", "no array of numbers"),
    "import tinyres as tr\ndef dx(J, ds):\n    return tr.tensor(ds)": (
        "wrong",
        "a Tensor of shape (5,) (its array is .data)",
    ),
    "def dx(J, ds):\n    return [0.0] * 10**7": ("wrong", "expected"),
    "import threading as t, time\nt.Thread(target=time.sleep, args=(99,)).start()\ndef dx(J, ds): return ds + ds @ J": (
        "passed",
        "no weight",
    ),
    "def dx(J, ds):\n    return (ds + J.T @ ds).astype('float32')": ("passed", "no weight"),
}


@pytest.mark.parametrize("text", FILES, ids=lambda text: text.replace("\n", ";")[:40].encode("ascii", "replace").decode())
def test_whatever_a_file_does_gets_a_clear_word(text, tmp_path):
    path = tmp_path / "answer.py"
    path.write_text(text)
    status, words = FILES[text]
    verdict = check(find("3.1"), path, seconds=1.0 if "while" in text else 30.0)
    assert (verdict.status, words in verdict.message) == (status, True), verdict
    assert verdict.printed == ("J is (5, 5)\n" * 2 if "print('J" in text else "")


def test_the_line_of_an_endless_loop_is_read_from_the_stack():
    stack = (
        'Thread 1:\n  File "/x/child.py", line 31 in write\n  File "/y/e3_1.py", line 12 in dx\n  File "/y/e3_1.py", line 3'
    )
    assert stopped(1, stack, "/y/e3_1.py", 2.0, b"").message.endswith("It was in line 12.")


def test_what_is_printed_without_end_is_cut(tmp_path):
    path = tmp_path / "answer.py"
    path.write_text("print('x' * 10**6)\nfor _ in range(1000): print('y')\nanswer = 4")
    verdict = check(find("2.1"), path)
    assert verdict.status == "passed" and len(verdict.printed) == 2000


def test_a_file_that_is_too_large_or_none_is_refused(tmp_path):
    path = tmp_path / "answer.py"
    path.write_bytes(b"#" * (1 << 20) + b"\n")
    assert "more than" in check(find("2.1"), path).message
    with pytest.raises(OSError):
        check(find("2.1"), tmp_path)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def desk_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments):
    return main(["exercise", *arguments])


def test_from_start_to_solution(desk_folder, capsys):
    assert command("start", "3.1") == 0
    assert "A block computes y = F(x) + x" in capsys.readouterr().out
    assert command("start", "3.1") == 2 and "may hold your work" in capsys.readouterr().err
    assert command("check", "3.1") == 1 and "Nothing is filled in yet" in capsys.readouterr().out

    path = desk_folder / "exercises" / "e3_1.py"
    path.write_text(path.read_text().replace("return ...", "return (ds + J.T @ ds) / 2"))
    assert command("check", "3.1", "--json", "found.json") == 1
    assert "Exactly half." in capsys.readouterr().out
    found = json.loads((desk_folder / "found.json").read_text())
    assert found["status"] == "wrong" and found["mistake"] == ["averaged at the fork", "halved at the addition"]

    hints = find("3.1").hints
    for shown in (1, 2, 3, 3):
        assert command("hint", "3.1") == 0
        text = " ".join(capsys.readouterr().out.split())
        assert [" ".join(hint.split()) in text for hint in hints] == [k < shown for k in range(3)]

    path.write_text(path.read_text().replace(" / 2", ""))
    assert command("check", "3.1") == 0 and "passed" in capsys.readouterr().out
    command("list")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("3.1", "3.2"))]
    assert lines[0].endswith("passed") and not lines[1].endswith("passed")
    assert command("solution", "3.1") == 0 and "return ds + J.T @ ds" in capsys.readouterr().out


def test_another_folder_is_named_in_what_to_type_next(desk_folder, capsys):
    assert command("start", "2.1", "--folder", "mine") == 0 and "check 2.1 --folder mine" in capsys.readouterr().out
    assert command("check", "2.1", "--folder", "mine") == 1 and "hint 2.1 --folder mine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("check", "9.1"), "there is no exercise '9.1'"),
        (("check",), "check which exercise?"),
        (("check", "3.1"), "e3_1.py does not exist; tinyres exercise start 3.1 writes it"),
        (("check", "3.1", "--all", "."), "not both"),
        (("check", "3.1", "--csv", "marks.csv"), "--csv is for a class"),
        (("check", "--all", "nowhere"), "nowhere is no folder"),
        (("check", "--all", "."), "holds no answers"),
        (("check", "--all", ".", "--csv", "marks.txt"), "must name a file that ends in .csv"),
        (("check", "3.1", "--time-limit", "0"), "--time-limit"),
        (("start",), "required"),
    ],
)
def test_a_wrong_command_is_one_line(arguments, words, desk_folder, capsys):
    assert command(*arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_progress_that_is_damaged_says_so(desk_folder, capsys):
    (desk_folder / "exercises").mkdir()
    for text in ("{", "[" * 5000):
        (desk_folder / "exercises" / "progress.json").write_text(text)
        assert command("hint", "3.1") == 2 and "mend it, or delete it" in capsys.readouterr().err
    (desk_folder / "exercises" / "progress.json").write_text('{"3.1": {"hints": "many"}}')
    assert command("hint", "3.1") == 0


def test_a_class_is_graded(desk_folder, capsys):
    answers = {
        "ada": {"3.1": "def dx(J, ds):\n    return ds + J.T @ ds", "2.1": "answer = 4"},
        "=bob": {"2.1": "answer = 8"},
    }
    answers["cleo"] = {"2.1": "1 / 0"}
    for name, files in answers.items():
        folder = desk_folder / "class" / name / ("exercises" if name == "ada" else "")
        folder.mkdir(parents=True)
        for number, text in files.items():
            (folder / find(number).file_name).write_text(text)
    (desk_folder / "class" / "empty").mkdir()
    assert command("check", "--all", "class", "--csv", "marks.csv", "--json", "marks.json") == 0
    out = capsys.readouterr().out
    assert "checked 4 of 4 files" in out
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert lines["ada"].split()[1:] == ["...", "+..", "+..", *["..."] * 5, "2", "of", "24"]
    assert lines["=bob"].split()[2] == "-.." and lines["cleo"].split()[2] == "!.." and "empty" not in lines
    with open("marks.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 24
    (bob,) = [row for row in rows if row["learner"] == "'=bob" and row["status"] == "wrong"]
    assert bob["mistake"] == "handed on twice" and bob["message"].startswith("8: b handed")
    found = json.loads((desk_folder / "marks.json").read_text())
    assert found["passed"] == {"=bob": 0, "ada": 2, "cleo": 0} and found["of"] == 24 and len(found["answers"]) == 72


def test_a_file_of_the_class_that_cannot_be_read_does_not_stop_the_rest(desk_folder):
    for name in ("a", "b"):
        (desk_folder / name).mkdir()
        (desk_folder / name / "e2_1.py").write_text("answer = 4")
    os.unlink(desk_folder / "a" / "e2_1.py")
    os.mkfifo(desk_folder / "a" / "e2_1.py")
    graded = dict(desk.grade(desk_folder))
    assert graded["a"]["2.1"].status == "error" and graded["b"]["2.1"].status == "passed"


def test_no_exercise_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for exercise in ALL.values():
            exercise.answers(exercise.right)
