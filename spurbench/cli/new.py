"""``spurbench new method NAME``: a method that conforms from its first minute, and its test."""

import argparse
import keyword
import re
import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path


def execute(options: argparse.Namespace) -> int:
    """Write both files; nothing is overwritten."""
    from spurbench.errors import ConfigError
    from spurbench.registry import load_registry, normalize

    name = normalize(options.name)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ConfigError(f"'{options.name}' is no name for a method; use letters, digits and _, for example my_method")
    if name in (taken := load_registry("methods").entries):
        raise ConfigError(f"method '{name}' exists already ({taken[name].origin}); choose another name")
    if find_spec(name) is not None:
        raise ConfigError(
            f"{name}.py would hide the module '{name}' from Python; choose another name, such as my_{name}"
        )
    folder = Path(options.to).expanduser()
    words = {"__NAME__": name, "__CLASS__": "".join(part.capitalize() for part in name.split("_"))}
    paths = {f"{stem}.py.txt": folder / f"{stem.replace('method', name)}.py" for stem in ("method", "test_method")}
    for path in paths.values():
        if path.exists():
            raise ConfigError(f"{path} exists already; choose another name, or another folder with --to DIR")
    folder.mkdir(parents=True, exist_ok=True)
    for template, path in paths.items():
        text = (files("spurbench.templates") / template).read_text(encoding="utf-8")
        for word, value in words.items():
            text = text.replace(word, value)
        path.write_text(text, encoding="utf-8")
        print(path)
    method, test = paths.values()
    print(
        f"next:\n  spurbench check-method {method}\n  python -m pytest {test}   (needs: pip install pytest)\n"
        f"  spurbench run --method {name} --plugin {method} --dataset minibirds100",
        file=sys.stderr,
    )
    return 0
