"""Commands: flags, messages and exit codes."""

import pytest

from fmjax.commands import cli
from fmjax.errors import InputError


def parser():
    parser = cli.ArgumentParser("python -m fmjax.demo", "A demonstration.")
    parser.add_argument("--prompt", required=True, help="text")
    parser.add_argument("--max_new_tokens", type=cli.number(int, low=1), default=64, help="limit")
    parser.add_argument("--top_p", type=cli.number(float, low=0, high=1, exclude_low=True), default=1.0, help="mass")
    return parser


def test_both_ways_of_giving_a_value():
    assert parser().parse_args(["--prompt=a b", "--max_new_tokens=3"]).max_new_tokens == 3
    arguments = parser().parse_args(["--prompt", "", "--top_p", "0.5"])
    assert (arguments.prompt, arguments.top_p) == ("", 0.5)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--prompt=x", "--max_new_token=3"], "did you mean '--max_new_tokens'"),
        (["--promt=x"], "did you mean '--prompt'"),
        (["--prompt=x", "--max_new_tokens=0"], "at least 1"),
        (["--prompt=x", "--max_new_tokens=many"], "expected an integer"),
        (["--prompt=x", "--top_p=0"], "above 0"),
        (["--prompt=x", "--top_p=nan"], "above 0"),
        (["--prompt=x", "--top_p=1.5"], "at most 1"),
        (["--prompt=x", "stray"], "stray"),
        ([], "--prompt"),
    ],
)
def test_bad_usage_is_one_message_and_exit_code_2(argv, message, capsys):
    assert cli.run(lambda argv: parser().parse_args(argv) and None, argv) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err and captured.err.count("\n") == 1


def test_exit_codes(capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    def refused(argv):
        raise InputError("the reason")

    def fault(argv):
        raise RuntimeError("a bug")

    assert cli.run(lambda argv: None, []) == 0
    assert cli.run(lambda argv: 3, []) == 3
    assert cli.run(interrupted, []) == 130
    assert cli.run(refused, []) == 2
    assert capsys.readouterr().err == "the reason\n"
    with pytest.raises(RuntimeError):  # a fault keeps its traceback
        cli.run(fault, [])


def test_a_flag_like_a_key_of_the_config_is_told_how_keys_are_replaced():
    parser = cli.ArgumentParser("x", "x")
    parser.add_argument(cli.CONFIG_HELP, dest="config_help", action="store_true")
    with pytest.raises(InputError, match=r"'--stepz'; a key of the config is replaced by --config\.") as told:
        parser.parse_args(["--stepz=3"])
    assert "did you mean" not in str(told.value)
