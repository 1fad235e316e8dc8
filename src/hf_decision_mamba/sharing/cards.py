"""What the cards of models and of data sets have in common: templates, the mark of a rendered card, cells."""

import functools
import hashlib
import json
import logging
import re
import reprlib
import shlex
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import DatasetCard, DatasetCardData, ModelCard, ModelCardData
from jinja2 import TemplateError
from markupsafe import Markup

from ..model.checkpoint_decision_mamba import DAMAGE, in_short
from ..reporting.env_ids import is_env_id
from ..reporting.figures import number
from ..reporting.files import replacing

# Ends every rendered README.md. While the checksum fits the text above it, nobody has edited the card.
_SIGNATURE = "<!-- rendered by hf_decision_mamba, sha256 {} -->"

# What a card prints comes from files that others may have written.
_UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # control, direction, surrogates, line separators
_LONGEST_TEXT = 300  # characters of one value

#: What a value of an unexpected kind leads to, in Python and in a template.
UNSHOWN: tuple[type[Exception], ...] = (*DAMAGE, TemplateError)

logger = logging.getLogger(__name__)


def render_card(name: str, metadata: ModelCardData | DatasetCardData, **values: Any) -> str:
    """Fill a template with values: strings become text in which nothing is markup, but for what these functions make.

    Args:
        name: of the template.
        metadata: the front matter, whose fields are values too.
    """
    template = _compiled_template(template_path(name).read_text(encoding="utf-8"))
    functions = {"number": number, "whole": whole, "code": code, "literal": literal, "shell": shell, "command": command}
    return template.render(card_data=Markup(metadata.to_yaml()), **{**metadata.to_dict(), **functions, **values})


@functools.cache  # compiling takes longer than all the rest of a card
def _compiled_template(text: str) -> jinja2.Template:
    return jinja2.Environment(autoescape=True, finalize=_inert).from_string(text)


@contextmanager
def explaining_values(where: Path) -> Iterator[None]:
    """Say that a value is missing, or is not of the type that a card needs, where Python says so.

    Args:
        where: the file, or the folder of the files, that the values are from.

    Raises:
        ValueError: names it.
    """
    try:
        yield
    except UNSHOWN as error:
        if isinstance(error, OSError) or str(where) in str(error):
            raise
        raise ValueError(
            f"{where} lacks a value that the card needs, or has one of another type ({in_short(error)}). Have its JSON "
            "written again, or correct it."
        ) from error


def check_env_id(name: object, path: Path) -> None:
    """Refuse what is said to be an environment and has not the form of a gymnasium id; None is fine.

    Raises:
        ValueError: says which file says so.
    """
    if name is not None and not is_env_id(name):
        raise ValueError(
            f"{path} names the environment {reprlib.repr(name)}, which is no gymnasium id ([module:][namespace/]name"
            "[-vN]). Correct or remove it there."
        )


def template_path(name: str = "template.md") -> Path:
    """Return a card's template: inside an installed package, or at the top of a source checkout.

    Raises:
        FileNotFoundError: it is in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    candidates = (package / "model_cards" / name, package.parents[1] / "model_cards" / name)
    for path in candidates:
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"The card template is neither at {candidates[0]} nor at {candidates[1]}: reinstall hf_decision_mamba."
    )


def write_card(path: Path, card: ModelCard | DatasetCard) -> Path:
    """Write a rendered card with its checksum, unless the card that is there was edited by hand; return its path."""
    if path.is_file() and not _is_rendered(path):
        logger.warning("%s was edited by hand and is kept as it is; delete it to have it rendered again.", path)
        return path
    text = str(card).rstrip() + "\n\n"
    with replacing(path) as draft:
        draft.write_text(f"{text}{_sign(text)}\n", encoding="utf-8", newline="\n")
    return path


def _sign(card: str) -> str:
    return _SIGNATURE.format(hashlib.sha256(card.encode()).hexdigest())


def _is_rendered(path: Path) -> bool:
    """Return whether a README.md is word for word what `write_model_card` wrote."""
    card, start, end = path.read_text(encoding="utf-8", errors="replace").rpartition("<!--")
    return (start + end).rstrip() == _sign(card)


# What makes text of what a file says


def visible(value: Any) -> Any:
    """Return a JSON value whose strings, keys included, are one line of characters that can be seen."""
    if isinstance(value, Mapping):
        return {visible(name): visible(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [visible(entry) for entry in value]
    if not isinstance(value, str):
        return value
    return " ".join("".join(" " if unicodedata.category(sign) in _UNSEEN else sign for sign in value).split())


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"


def _inert(value: Any) -> Any:
    """Return what the template prints: numbers and Markup as they are, everything else as text without markup."""
    if value is None or isinstance(value, (Markup, jinja2.Undefined, int)):
        return value
    if isinstance(value, float):
        return number(value)
    text = re.sub(r"[&<>\[\]`*\\~]|(?<!\w)_|_(?!\w)", lambda sign: f"&#{ord(sign[0])};", _short(str(value)))
    if re.match(r"#|[-+=]+(\s|$)|\d+[.)]\s", text):  # a heading or a list, where a line begins with it
        text = f"&#{ord(text[0])};{text[1:]}"
    return Markup(text.replace("|", "\\|"))


# Functions that the templates call


def code(value: object) -> Markup:
    """Return any value as code within a line, or within a cell of a table."""
    return Markup("`{}`").format(Markup(_short(str(value)).replace("`", "'").replace("|", "\\|")))


def literal(text: str) -> Markup:
    """Return a text as Python has it."""
    return Markup(json.dumps(text, ensure_ascii=False) if text.isprintable() else ascii(text))


def shell(text: str) -> Markup:
    """Return a text as one word of a command."""
    return Markup(shlex.quote(visible(text)))


def command(text: str) -> Markup:
    """Return a command whose words stand for themselves, whatever is in them."""
    try:
        words = shlex.split(text)
    except ValueError:  # a quotation without an end
        words = [text]
    return Markup(shlex.join(words))


def whole(value: object) -> int:
    """Return a whole number that stands in code."""
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is not a whole number")
    return value
