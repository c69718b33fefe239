"""A learner's folder: files of lessons, and what has been done, in progress.json.

The folder is never inside the package or the tools. Files of lessons are copied into it once and never overwritten.

Test: ``pytest tests/tools/test_lessons.py``
"""

import importlib.util
import json
import shlex
import sys
from pathlib import Path

import vita_ref
from vita_ref.files.messages import escaped, shown

HERE = Path(__file__).resolve().parent
STUBS = HERE / "stubs"


class Work:
    """The folder that `--work` names."""

    def __init__(self, folder):
        try:
            self.folder = Path(folder).expanduser()
            whole = self.folder.resolve()
            is_file = whole.exists() and not whole.is_dir()
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"--work {shown(folder)} is not a folder's name: {escaped(str(error))[:200]}") from None
        for protected in (Path(vita_ref.__file__).resolve().parent, HERE.parent):
            if whole == protected or protected in whole.parents:
                raise ValueError(f"your files do not belong into {protected}: name another folder with --work")
        if is_file:
            raise ValueError(f"{self.folder} is a file: name a folder with --work")
        self.progress = self._read()

    def _read(self):
        path = self.folder / "progress.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"cannot read {path}: {error}; delete it to begin anew") from None
        if not isinstance(found, dict):
            raise ValueError(f"{path} does not hold a JSON object; delete it to begin anew")  # noqa: TRY004
        return found

    def note(self, name, **entry):
        """Stores what is known about a lesson or card."""
        self.progress[str(name)] = entry
        self.make()
        text = json.dumps(self.progress, indent=1) + "\n"
        new, path = self.folder / "progress.json.new", self.folder / "progress.json"
        try:
            new.write_text(text, encoding="utf-8")
            new.replace(path)  # atomic: an interruption leaves the old file complete
        except OSError as error:
            raise ValueError(f"cannot write {path}: {error.strerror}") from None

    def make(self, *parts):
        """The folder, or one in it."""
        path = self.folder.joinpath(*parts)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"cannot make the folder {path}: {error.strerror}") from None
        return path

    def done(self, name):
        """Whether a lesson or card is done."""
        return self.entry(name).get("done") is True

    def failures(self, name):
        """How often in a row its check has failed."""
        count = self.entry(name).get("failures", 0)
        return max(count, 0) if isinstance(count, int) else 0

    def entry(self, name):
        found = self.progress.get(str(name), {})
        return found if isinstance(found, dict) else {}

    def file(self, lesson):
        """The learner's file of a lesson."""
        return self.folder / f"{lesson.module}.py"

    def start(self, lesson):
        """Copies the text and the stub of a lesson, unless the file is there."""
        path = self.file(lesson)
        if path.exists():
            return False
        self.make()
        command = f"tools/lessons/run.py {lesson.number}"
        text = (STUBS / path.name).read_text(encoding="utf-8").replace(f"{command}\n", f"{command}{self.flag}\n")
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ValueError(f"cannot write {path}: {error.strerror}") from None
        return True

    @property
    def flag(self):
        """The flag that makes a command use this folder; empty for the default folder."""
        return "" if self.folder == Path("my-vita") else f" --work {shlex.quote(str(self.folder))}"

    def functions(self, lesson):
        """The functions, classes and other callables of the learner's file, by name. Raises: ValueError if it cannot be imported."""
        path = self.file(lesson).resolve()
        spec = importlib.util.spec_from_file_location(lesson.module, path)
        module = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(path.parent))  # a lesson may import an earlier one
        sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
        try:
            spec.loader.exec_module(module)
        except SyntaxError as error:
            line = f", line {error.lineno}" if error.lineno else ""
            raise ValueError(f"{self.file(lesson)}{line}: {error.msg}") from None
        except (Exception, SystemExit) as error:  # noqa: BLE001, of the learner's code
            raise ValueError(f"{self.file(lesson)} cannot be imported: {type(error).__name__}: {escaped(str(error))[:400]}") from None
        finally:
            sys.path.remove(str(path.parent))
            sys.dont_write_bytecode = before
        return {name: x for name, x in vars(module).items() if callable(x) and not name.startswith("_")}
