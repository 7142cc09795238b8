"""The flags that describe a run: a recipe, a stored configuration, and one flag for every field over them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from raypaml.augmentation.augmentations import augmentations_text
from raypaml.cli import KeptLines, Parser, add_config_flags, say
from raypaml.config import EARLIER, TrainConfig
from raypaml.extensions import import_first
from raypaml.losses.schemes import help_text
from raypaml.recipes import RECIPES, as_before, recipe, resolve
from raypaml.runs.run_folder import open_run, read_config, stored_config, stored_settings
from raypaml.settings import RunConfig

_PUBLISHED = """What is published for a scheme on the data set of a recipe, such as delta_rel 0.2 for ll_ct on VOC, is
used by that recipe where no flag says otherwise; a run that differs from it says so when it starts. The
large-loss schemes have the values of BoostLU's code (Adam, lr 1e-5); those that LL's author gives without
BoostLU are in the recipes' docstrings. raypaml/losses/README.md lists all values and where they are from."""


@dataclass(frozen=True)
class AskedConfig:
    """A configuration as it was asked for, by flags or in Python."""

    config: TrainConfig
    given: dict[str, Any]
    """The settings that were given, of their fields' types."""
    plain: TrainConfig
    """The configuration as earlier versions made it of the same."""


def parse_run(
    argv: Sequence[str],
    prog: str,
    about: str,
    add_own: Callable[[Parser], None] = lambda _: None,
    defaults: dict[str, Any] | None = None,
) -> tuple[TrainConfig, Any]:
    """The configuration that a command line asks for, and the values of the command's own flags.

    Args:
        argv: the arguments, without the command.
        prog: the command, for messages.
        about: what it does, for --help.
        add_own: adds the command's own flags.
        defaults: fields whose value, where no flag gives one, is the command's and not the recipe's.

    Returns:
        The recipe, the file's or the stored configuration of a run that is continued, with the flags over it, and under
        them what the recipe has for another scheme (`recipes.resolve`); and a namespace of all other flags, with the
        same configuration in `asked`.
    """

    def parse(base: TrainConfig, argv: Sequence[str]) -> dict[str, Any]:
        parser = run_parser(base, prog, about)
        add_own(parser)
        return vars(parser.parse(argv))

    import_first(argv)
    asked = parse(TrainConfig(), [flag for flag in argv if flag not in ("-h", "--help")])
    base = base_config(asked).override(defaults or {})
    shown = resolve(base, {name: asked[name] for name in ("scheme",) if name in asked})
    values = parse(shown, argv)  # once more, so that --help shows the values of this recipe and scheme
    fields = base.flat()
    own = SimpleNamespace(**{name: value for name, value in values.items() if name not in fields})
    given = {name: value for name, value in values.items() if name in fields}
    own.asked = asked_config(base, given, stored=bool(asked["config"]))
    if asked["config"]:
        _say_earlier(Path(asked["config"]), own.asked.config, given)
    return own.asked.config, own


def asked_config(base: TrainConfig, given: dict[str, Any], *, stored: bool) -> AskedConfig:
    """The configuration with settings over it, and under them what the recipe has for another scheme.

    Args:
        base: what the settings are laid over.
        given: settings by the names of their fields.
        stored: whether `base` was given as it is, rather than by the name of a recipe, which earlier versions had
            otherwise.

    Raises:
        ValueError: settings that go together only in what earlier versions stored.
    """
    config = resolve(base, given)
    if given.get("threads") == 0 and config.optim.reproducible:
        raise ValueError("threads=0: reproducible gradients depend on the number of threads; use --threads 1")
    return AskedConfig(config, given, (base if stored else as_before(base)).override(given))


def _say_earlier(path: Path, config: TrainConfig, given: Collection[str]) -> None:
    """Say what a file that an earlier version wrote has otherwise than today's recipe, and how to have today's."""
    today, values = RECIPES.get(config.recipe, TrainConfig)().flat(), config.flat()
    lacks = set(EARLIER) - stored_settings(path) - set(given)
    earlier = {name: today[name] for name in EARLIER if name in lacks and values[name] != today[name]}
    if not earlier:
        return
    had = ", ".join(f"{name}={values[name]}" for name in earlier)
    flags = {name: "--" + name.replace("_", "-") for name in earlier}
    remedy = (
        (flag if today[name] else "--no-" + flag[2:]) if isinstance(today[name], bool) else f"{flag} {today[name]!s}"
        for name, flag in flags.items()
    )
    say(f"{path}: of an earlier version, used as it was then, with {had}; as today: {' '.join(remedy)}")


def spelled_out(argv: Sequence[str]) -> list[str]:
    """`--workers 2:8` written out: `--min-workers 2 --workers 8`."""
    return re.sub(r"--workers[= \0](\d+):(\d+)", "--min-workers\0\\1\0--workers\0\\2", "\0".join(argv)).split("\0")


def run_parser(base: TrainConfig, prog: str, about: str) -> Parser:
    """Recipe, `--config` and a flag for every field; [values] are those of `base`."""
    texts = (help_text(), _PUBLISHED, augmentations_text(), "Values of flags in [brackets] are the recipe's.")
    epilog = "\n\n".join(texts)
    parser = Parser(prog=prog, description=about, epilog=epilog, formatter_class=KeptLines)
    parser.add_argument("recipe", nargs="?", help=f"one of {', '.join(RECIPES)} [digits]")
    about_config = "best.json of a search or config.json of a run, instead of a recipe; flags win"
    parser.add_argument("--config", metavar="FILE", help=about_config)
    for _, group in base.groups():
        add_config_flags(parser, group)
    return parser


def base_config(asked: dict[str, Any]) -> TrainConfig:
    """What the flags are laid over: the file given, or the stored configuration of the run named, or the recipe."""
    base = None
    if asked["config"]:
        where = Path(asked["config"])
        base = read_config(where).override({"name": "", "storage": RunConfig.storage, "address": ""})
        if "pseudo_labels" in asked:  # the digest is that of the file's
            base = base.override({"pseudo_labels_sha256": ""})
        if "from_run" in asked:
            base = base.override({"from_sha256": ""})
    elif asked.get("name"):
        where = open_run(asked.get("storage", RunConfig.storage), asked["name"])
        base = stored_config(where)
    if base is None:
        return recipe(asked["recipe"] or "digits")
    if asked["recipe"] not in (None, base.recipe):
        remedy = "leave the recipe out" if asked["config"] else "use another --name"
        raise ValueError(f"{where}: the run was started with recipe {base.recipe}, asked: {asked['recipe']}; {remedy}")
    return base
