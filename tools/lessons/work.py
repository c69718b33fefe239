"""A learner's folder: files of lessons, and what has been done, in progress.json.

The folder is never inside the package or the tools. Files of lessons are copied into it once and never overwritten.

Test: ``pytest tests/tools/test_lessons.py``
"""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import FunctionType

import vita_ref

HERE = Path(__file__).resolve().parent
STUBS = HERE / "stubs"


class Work:
    """The folder that `--work` names."""

    def __init__(self, folder):
        self.folder = Path(folder).expanduser()
        whole = self.folder.resolve()
        for closed in (Path(vita_ref.__file__).resolve().parent, HERE.parent):
            if whole == closed or closed in whole.parents:
                raise ValueError(f"your files do not belong into {closed}: name another folder with --work")
        if whole.exists() and not whole.is_dir():
            raise ValueError(f"{self.folder} is a file: name a folder with --work")
        self.progress = self._read()

    def _read(self):
        path = self.folder / "progress.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read {path}: {error}; delete it to begin anew") from None
        if not isinstance(found, dict):
            raise ValueError(f"{path} does not hold a JSON object; delete it to begin anew")  # noqa: TRY004
        return found

    def note(self, name, **entry):
        """Stores what is known about a lesson or card."""
        self.progress[str(name)] = entry
        self.make()
        text = json.dumps(self.progress, indent=1) + "\n"
        (self.folder / "progress.json").write_text(text, encoding="utf-8")

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
        return count if isinstance(count, int) else 0

    def entry(self, name):
        found = self.progress.get(str(name), {})
        return found if isinstance(found, dict) else {}

    def file(self, lesson):
        """The learner's file of a lesson."""
        return self.folder / f"{lesson.module}.py"

    def start(self, lesson):
        """Copies the text and the stub of a lesson, unless the file is there."""
        if self.file(lesson).exists():
            return False
        self.make()
        shutil.copy(STUBS / f"{lesson.module}.py", self.file(lesson))
        return True

    def functions(self, lesson):
        """The functions and classes of the learner's file, by name. Raises: ValueError if it cannot be imported."""
        path = self.file(lesson).resolve()
        spec = importlib.util.spec_from_file_location(lesson.module, path)
        module = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(path.parent))  # a lesson may import an earlier one
        sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
        try:
            spec.loader.exec_module(module)
        except SyntaxError as error:
            raise ValueError(f"{self.file(lesson)}, line {error.lineno}: {error.msg}") from None
        except Exception as error:  # noqa: BLE001, of the learner's code
            raise ValueError(f"{self.file(lesson)} cannot be imported: {type(error).__name__}: {error}") from None
        finally:
            sys.path.remove(str(path.parent))
            sys.dont_write_bytecode = before
        return {name: x for name, x in vars(module).items() if isinstance(x, (FunctionType, type)) and not name.startswith("_")}
