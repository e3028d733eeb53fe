"""The README and the guides: their commands are understood (flags, config files, every overridden key), and what they
name is there, headings included."""

import pathlib
import re
import shlex

import pytest

from fmjax import config as configs
from fmjax import agent, convert, evaluate, generate, plan, search, train
from fmjax.commands import best_of, keep, lm_eval, merge, reference, teach, values
from fmjax.compress import __main__ as compress
from fmjax.inference.denoising import Denoising
from fmjax.inference.drawn_codes import DrawnCodes
from fmjax.inference.unclip import UpsampledImages
from fmjax.inference.unmasked_images import UnmaskedImages
from fmjax.inference.unmasking import Filling
from tests.interop.folders import stand_for_hub_ids

ROOT = pathlib.Path(__file__).parents[1]
PAGES = {
    str(page.relative_to(ROOT)): page.read_text() for page in (ROOT / "README.md", *ROOT.glob("fmjax/**/README.md"))
}
COMMANDS = [
    (name, *command)
    for name, text in PAGES.items()
    for command in re.findall(r"python -m fmjax\.([\w.]+) ([^\n`&]*)", text)
]


@pytest.mark.parametrize("page, module, arguments", COMMANDS, ids=[f"{p} {m} {a[:50]}" for p, m, a in COMMANDS])
def test_every_command_parses(page, module, arguments, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    stand_for_hub_ids(monkeypatch, tmp_path / "hub")
    argv = shlex.split(arguments)
    if module in ("train", "plan"):
        flags, overrides = {"train": train, "plan": plan}[module].parse(argv)
        if flags.config == "curve.py":  # the page that has it says what is in it, and `test_extending` runs it
            return
        config = configs.resolve(configs.apply_overrides(configs.load_config_file(flags.config), overrides))
        assert config["train"]["steps"] > 0
    elif module == "generate" and "--output" in arguments and ".png" in arguments:
        kinds = {"maskgit": UnmaskedImages, "dalle1": DrawnCodes, "dalle2": UpsampledImages}
        kind = next((kind for name, kind in kinds.items() if name in arguments), Denoising)
        assert values.parse(argv, kind)[0].output.endswith(".png")
    elif module == "generate" and "t2i" in arguments:
        assert values.parse(argv, Denoising)[0].prompts.endswith(".jsonl")
    elif module == "generate" and "mdlm" in arguments:
        assert values.parse(argv, Filling)[0].output.endswith(".txt")
    else:
        commands = {"convert": convert, "evaluate": evaluate, "generate": generate, "search": search}
        commands["agent"] = agent
        commands |= {"commands.lm_eval": lm_eval, "commands.keep": keep, "commands.reference": reference}
        commands |= {"commands.best_of": best_of, "commands.teach": teach}
        commands |= {"commands.merge": merge, "compress": compress}
        assert commands[module].parse(argv) is not None


def test_what_they_name_is_there():
    assert len(COMMANDS) >= 30 and len(PAGES) >= 7
    found = 0
    for name, text in PAGES.items():
        for link in re.findall(r"\]\(([\w./#-]+)\)", text):
            path, _, heading = link.partition("#")
            target = (ROOT / name).parent / path if path else ROOT / name
            assert target.exists(), f"{name} links to {link}"
            assert not heading or heading in headings(target.read_text()), f"{name} links to {link}"
            found += 1
        for path in re.findall(r"`((?:fmjax|tests|configs|colab|experiments)/[\w/.]+)`", text):
            assert (ROOT / path).exists(), f"{name} names {path}"
            found += 1
    assert found > 80


def test_the_readme_is_a_page_one_reads():
    assert PAGES["README.md"].count("\n") < 150
    assert len(re.findall(r"-m pytest$", PAGES["README.md"], flags=re.MULTILINE)) == 1  # .ci/run takes it


def headings(text: str) -> set[str]:
    """The anchors that a page's headings are linked by."""
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
