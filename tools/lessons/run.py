"""Build VITA yourself, lesson by lesson, with a check at every step.

    python tools/lessons/run.py              the list: what is done, and what comes next
    python tools/lessons/run.py 3            gives you lesson 3; then checks yours: which case fails, where, by how much
    python tools/lessons/run.py swap         the real model answers with your parts in it
    python tools/lessons/run.py bug          find the bug: cards, each a copy of the package with one wrong line
    python tools/lessons/run.py change       change something: train the projector anew, add a colour, ask about two pictures
    python tools/lessons/run.py port         a porter's walk: a wrong weight in "your port", found in four commands
    python tools/lessons/run.py mistakes     the table of typical mistakes that the checks know

Your files live in the folder that --work names, never inside the package. Exit status: 0; 1 if a check fails; 2 for wrong
arguments.

Test: ``pytest tests/tools/test_lessons.py`` and ``tests/tools/test_lessons_more.py``
"""

import argparse
import importlib
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from tools.lessons.check import check
from tools.lessons.work import Work

COUNT = 14


def lessons():
    """All lessons in order."""
    return [importlib.import_module(f"tools.lessons.checks.c{n:02}").LESSON for n in range(1, COUNT + 1)]


def lesson_of(number):
    return importlib.import_module(f"tools.lessons.checks.c{number:02}").LESSON


# ---- the list and the lessons


def show_list(work, a):
    """Every lesson with its state, and what comes next."""
    every, following = lessons(), None
    for each in every:
        failures = work.failures(each.number)
        state = "done" if work.done(each.number) else f"failed {times(failures)}" if failures else "begun" if work.file(each).exists() else ""
        if state != "done" and following is None:
            following = each
        print(f"{each.number:3}  {each.title:44} {state}{'  <- next' if each is following else ''}".rstrip())
    if following:
        print(f"\nNext: {command(work, following.number)}")
    else:
        print(f"\nAll done. Now {command(work, 'swap')}, {command(work, 'bug')}, {command(work, 'change')} and {command(work, 'port')}.")
    return 0


def times(n):
    return "once" if n == 1 else f"{n} times"


def command(work, what):
    """A command of this program, with the folder if it is not the default."""
    return f"python tools/lessons/run.py {what}{work.flag}"


def run_lesson(work, a):
    """Gives a lesson out, or checks the learner's file."""
    lesson = lesson_of(int(a.what))
    if work.start(lesson):
        print(f"{work.file(lesson)} is ready. Read it, write what it asks for, and run this command again.")
        return 0
    functions = work.functions(lesson)
    if lesson.number == 12:
        functions["my"] = SimpleNamespace(**earlier(work))
    before = work.failures(lesson.number)
    report = check(lesson, functions, before, work.file(lesson).resolve())
    print(f"lesson {lesson.number}, {lesson.title}", *report.lines, sep="\n")
    if report.ok:
        work.note(lesson.number, done=True, failures=0)
        print(f"All {report.passed} cases are right.", praise(work, lesson))
        return 0
    if report.stub:
        print(f"       The text is at the top of {work.file(lesson)}.")
        return 1
    work.note(lesson.number, done=False, failures=before + 1)
    return 1


def praise(work, lesson):
    """What to do after a lesson."""
    following = [n for n in range(lesson.number + 1, COUNT + 1) if not work.done(n)]
    swap = f" {command(work, 'swap')} puts it into the real model." if lesson.swapped else ""
    return f"Next: {command(work, following[0])}.{swap}" if following else f"That was the last one.{swap}"


def earlier(work):
    """The learner's functions of the lessons that are done, before lesson 12."""
    found = {}
    for lesson in lessons()[:11]:
        if work.done(lesson.number) and work.file(lesson).exists():
            found |= only(work.functions(lesson), lesson)
    return found


def only(functions, lesson):
    """Those functions that the lesson asked for."""
    return {name: f for name, f in functions.items() if name in lesson.reference}


# ---- the rest


def run_swap(work, a):
    """The model's answer with the learner's parts in it."""
    from tools.lessons.demo import demo, example
    from tools.lessons.swap import answer

    done = [each for each in lessons()[:10] if work.done(each.number) and work.file(each).exists()]
    if not done:
        print(f"No lesson is done yet: begin with {command(work, 1)}")
        return 1
    functions = {each.number: only(work.functions(each), each) for each in done}
    text, called, off = answer(functions, demo(), example())
    print(f"{', '.join(f'your {name}' for name in called)}: {text}")
    print(f"The logits of the first token differ from the model's own by at most {off:.1g}.")
    if work.done(12):
        from tools.lessons.checks.c12 import on_demo

        own = SimpleNamespace(**work.functions(lesson_of(12)), my=SimpleNamespace(**earlier(work)))
        print(f"your loop, without the model's code: {on_demo(own)}")
    return 0 if off < 1e-2 else 1


def run_bug(work, a):
    """The list of cards, or one card: gives it out, says what is wrong, checks a guess."""
    from tools.lessons import cards

    if not a.rest:
        for i, card in enumerate(cards.CARDS, 1):
            state = "mended" if work.done(f"bug {i}") else "given out" if (work.folder / f"bug{i:02}").exists() else ""
            print(f"{i:3}  {card.title:44} {card.level:8} {state}".rstrip())
        print(f"\nThe three hard ones together are a day's work. Take one: {command(work, 'bug 1')}")
        return 0
    number = number_of(a.rest, len(cards.CARDS), "card")
    card, folder = cards.CARDS[number - 1], work.folder / f"bug{number:02}"
    if folder.exists() and not (folder / "vita_ref").is_dir():
        raise ValueError(f"{folder} is no copy of the package: remove it, and you get the card anew")
    if not folder.exists():
        work.make()
        cards.write(card, folder)
        print(CARD.format(folder=shlex.quote(str(folder)), title=card.title, hint=card.hint, again=command(work, f"bug {number}"), dump=HERE.parent / "dump.py"))
    if a.line:
        found, text = cards.distance(card, folder, a.line)
        print(text)
        return 0 if found else 1
    rows = cards.symptoms(card, folder)
    width = max(len(name) for name, _, _ in rows)
    for name, right, text in rows:
        print(f"  {'ok ' if right else 'OFF'}  {name:{width}}  {'' if right else text}".rstrip())
    mended = all(right for _, right, _ in rows)
    if mended:
        work.note(f"bug {number}", done=True)
        print("Mended. Which property would have found it at once? Look it up: python tools/mutants.py -k", repr(card.mutant))
    return 0 if mended else 1


CARD = """{folder} has a copy of the package with one wrong line: "{title}".
Work in it, and do not compare it with the original line by line: that takes a second and teaches nothing. Useful:

    cd {folder} && python -m vita_ref.generate --image weights/demo/example.jpg
    python {dump} a.safetensors --deep --image weights/demo/example.jpg          the reference
    cd {folder} && python tools/dump.py b.safetensors --deep --image weights/demo/example.jpg
    python {dump} --compare a.safetensors {folder}/b.safetensors
    {again} --line decoder.py:88      is it this line?
    {again}                           is it mended?

A question: {hint}

What is wrong now:"""


def run_change(work, a):
    """An experiment with training."""
    from tools.lessons import change

    names = list(change.EXPERIMENTS)
    if not a.rest:
        print(change.__doc__.split("\n\n")[1])
        print(f"\nTake one: {command(work, 'change projector')} --minutes 5")
        return 0
    if a.rest not in names:
        raise ValueError(f"the experiments are {', '.join(names)}, got {a.rest!r}")
    options = {"seed": a.seed}
    if a.minutes is not None:
        options["minutes"] = a.minutes
    if a.rest == "colour":
        options |= {"name": a.name, "rgb": rgb(a.rgb)}
    change.EXPERIMENTS[a.rest](**options)
    return 0


def rgb(text):
    """Three bytes from a text such as 40,190,180."""
    parts = text.split(",")
    if len(parts) != 3 or not all(p.strip().isdecimal() and int(p) < 256 for p in parts):
        raise ValueError(f"--rgb must be three numbers from 0 to 255 such as 40,190,180, got {text!r}")
    return tuple(map(int, parts))


def run_port(work, a):
    """Gives a port out, or checks a guess."""
    from tools.lessons import port
    from tools.lessons.demo import example

    number = number_of(a.rest or "1", len(port.PORTS), "port")
    folder = work.folder / f"port{number}"
    if a.guess:
        found, text = port.guess(number, a.guess)
        print(text)
        if found:
            work.note(f"port {number}", done=True)
            if number < len(port.PORTS):
                print(f"Another one: {command(work, f'port {number + 1}')}")
        return 0 if found else 1
    work.make(folder.name)
    port.write(number, folder)
    names = {"a": work.folder / "reference.safetensors", "b": work.folder / f"port{number}.safetensors"}
    paths = {"dump": "tools/dump.py", "run": "tools/lessons/run.py", "image": example_path(example())}
    quoted = {key: shlex.quote(str(path)) for key, path in (names | paths).items()}
    print(port.WALK.format(python="python", port=shlex.quote(str(folder)), number=number, work=work.flag, **quoted))
    return 0


def example_path(path):
    """The path of the JPEG, short if it is below the working directory."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def number_of(text, most, kind):
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise ValueError(f"the {kind}s are numbered 1 to {most}, got {text!r}")
    return int(text)


def mistakes_table():
    """The typical mistakes of every lesson as Markdown."""
    out = ["# Typical mistakes that the checks know by name", "", "Written by `python tools/lessons/run.py mistakes`. Each is planted in a test.", ""]
    for lesson in lessons():
        out += [f"## {lesson.number}. {lesson.title}", "", "| mistake | what it means |", "| --- | --- |"]
        out += [f"| {m.name} | {m.meaning} |" for m in lesson.mistakes]
        out.append("")
    return "\n".join(out)


def run_mistakes(work, a):
    print(mistakes_table(), end="")
    return 0


ACTIONS = {"swap": run_swap, "bug": run_bug, "change": run_change, "port": run_port, "mistakes": run_mistakes}


def arguments():
    p = argparse.ArgumentParser(prog="run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", nargs="?", help="the number of a lesson, or swap, bug, change, port, mistakes")
    p.add_argument("rest", nargs="?", help="which card, experiment or port")
    p.add_argument("--work", default="my-vita", metavar="DIR", help="your folder (default: ./my-vita)")
    p.add_argument("--line", metavar="FILE:LINE", help="bug: is the bug in this line?")
    p.add_argument("--guess", metavar="NAME", help="port: is this the wrong tensor?")
    p.add_argument("--minutes", type=float, help="change: how long to train (default: 5; two: none)")
    p.add_argument("--seed", type=int, default=0, help="change: other pictures and other random numbers")
    p.add_argument("--name", default="turquoise", help="change colour: the word")
    p.add_argument("--rgb", default="40,190,180", help="change colour: how it looks")
    return p


def action(what):
    """The function of a command. Raises: ValueError if there is none."""
    if what is None:
        return show_list
    if what in ACTIONS:
        return ACTIONS[what]
    if what.isdecimal() and 1 <= int(what) <= COUNT:
        return run_lesson
    raise ValueError(f"the lessons are numbered 1 to {COUNT}, and there are {', '.join(ACTIONS)}; got {what!r}")


def main(argv=None):
    """Entry point. Returns the exit status."""
    a = arguments().parse_args(argv)
    try:
        if a.minutes is not None and not 0 < a.minutes <= 600:
            raise ValueError(f"--minutes must be above 0 and at most 600, got {a.minutes}")
        return action(a.what)(Work(a.work), a)
    except ValueError as error:
        print(f"run.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
