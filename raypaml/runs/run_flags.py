"""The flags that describe a run: a recipe, a stored configuration, and one flag for every field over them."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from raypaml.augmentation.augmentations import augmentations_text
from raypaml.cli import Parser, add_config_flags, say
from raypaml.config import EARLIER, TrainConfig
from raypaml.extensions import import_first
from raypaml.losses.schemes import help_text
from raypaml.recipes import RECIPES, as_before, recipe, resolve
from raypaml.runs.run_folder import open_run, read_config, stored_config, stored_settings
from raypaml.settings import RunConfig, SettingValues

_PUBLISHED = """A recipe uses the values published for the scheme on its data set, such as delta_rel 0.2 for ll_ct on
VOC, unless a flag says otherwise; a run that differs from them says so when it starts. The large-loss schemes
have the values of BoostLU's code (Adam, lr 1e-5); those that LL's author gives without BoostLU are in the
recipes' docstrings. raypaml/losses/README.md lists all values with their sources."""


@dataclass(frozen=True)
class AskedConfig:
    """A configuration that was asked for, by flags or in Python."""

    config: TrainConfig
    given: SettingValues
    """The settings that were given."""
    plain: TrainConfig
    """The configuration that earlier versions made of the same flags."""


def parse_run(
    argv: Sequence[str],
    prog: str,
    about: str,
    add_own: Callable[[Parser], None] = lambda _: None,
    defaults: SettingValues | None = None,
) -> tuple[AskedConfig, Namespace]:
    """Parse the configuration that a command line asks for, and the command's own flags.

    Args:
        argv: the arguments, without the command.
        prog: the name of the command, for messages.
        about: what the command does, for --help.
        add_own: adds the command's own flags to a parser.
        defaults: settings that have another default in this command than in the recipe.

    Returns:
        The configuration of the recipe, of the given file, or of the run that is continued, with the given settings
        (`recipes.resolve`); and the command's own flags, from which it makes its request.
    """

    def parse(base: TrainConfig, argv: Sequence[str]) -> SettingValues:
        parser = run_parser(base, prog, about)
        add_own(parser)
        return vars(parser.parse(argv))

    import_first(argv)
    asked = parse(TrainConfig(), [flag for flag in argv if flag not in ("-h", "--help")])
    base = base_config(asked).override(defaults or {})
    shown = resolve(base, {name: asked[name] for name in ("scheme",) if name in asked})
    values = parse(shown, argv)  # again, so that --help shows the values of this recipe and scheme
    fields = base.flat()
    own = Namespace(**{name: value for name, value in values.items() if name not in fields})
    given = {name: value for name, value in values.items() if name in fields}
    made = asked_config(base, given, stored=bool(asked["config"]))
    if asked["config"]:
        _say_earlier(Path(asked["config"]), made.config, given)
    return made, own


def asked_config(base: TrainConfig, given: SettingValues, *, stored: bool) -> AskedConfig:
    """A configuration with given settings, resolved by `recipes.resolve`.

    Args:
        base: the configuration that the settings change.
        given: the settings, by name.
        stored: whether `base` is from a file or from Python, rather than a recipe, whose values earlier versions had
            otherwise.

    Raises:
        ValueError: settings that only runs of earlier versions may have together.
    """
    config = resolve(base, given)
    if given.get("threads") == 0 and config.optim.reproducible:
        raise ValueError("threads=0: reproducible gradients depend on the number of threads; use --threads 1")
    return AskedConfig(config, given, (base if stored else as_before(base)).override(given))


def _say_earlier(path: Path, config: TrainConfig, given: Collection[str]) -> None:
    """Say where a file of an earlier version differs from the recipe of today, and which flags have today's values."""
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
    say(f"{path}: written by an earlier version and used as then, with {had}; for today's values: {' '.join(remedy)}")


def spelled_out(argv: Sequence[str]) -> list[str]:
    """Replace `--workers 2:8` by `--min-workers 2 --workers 8`."""
    return re.sub(r"--workers[= \0](\d+):(\d+)", "--min-workers\0\\1\0--workers\0\\2", "\0".join(argv)).split("\0")


def run_parser(base: TrainConfig, prog: str, about: str) -> Parser:
    """A parser with the recipe, `--config` and a flag for every setting; --help shows the values of `base`."""
    texts = (help_text(), _PUBLISHED, augmentations_text(), "The values in [brackets] are the recipe's.")
    epilog = "\n\n".join(texts)
    parser = Parser(prog=prog, description=about, epilog=epilog)
    parser.add_argument("recipe", nargs="?", help=f"one of {', '.join(RECIPES)} [digits]")
    about_config = "best.json of a search or config.json of a run, in place of a recipe; other flags change its values"
    parser.add_argument("--config", metavar="FILE", help=about_config)
    for _, group in base.groups():
        add_config_flags(parser, group)
    return parser


def base_config(asked: SettingValues) -> TrainConfig:
    """The configuration that settings change: of the given file, of the run named, or of the recipe."""
    base = None
    if asked["config"]:
        where = Path(asked["config"])
        base = read_config(where).override({"name": "", "storage": RunConfig.storage, "address": ""})
        if "pseudo_labels" in asked:  # the stored digest is of another file
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
