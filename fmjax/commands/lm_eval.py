"""lm-evaluation-harness: `python -m fmjax.commands.lm_eval --model=DIR --tasks=a,b [--include_path=DIR] --output=FILE`.

The harness's own tasks on a model of fmjax (`fmjax.tasks.lm_eval`); needs the extra `[lm-eval]`.
"""

import json
import pathlib
import sys

from fmjax.commands import cli
from fmjax.errors import InputError
from fmjax.layers.checks import COMPUTE_DTYPES
from fmjax.tasks.lm_eval import HarnessModel, need_harness, task_manager


def parse(argv: list[str]):
    parser = cli.ArgumentParser("python -m fmjax.commands.lm_eval", "Evaluate a model with lm-evaluation-harness.")
    parser.add_argument("--model", required=True, help="workdir of a run, one of its checkpoints, or a saved model")
    parser.add_argument("--tasks", required=True, help="the harness's names, separated by commas")
    parser.add_argument("--include_path", action="append", default=[], help="a folder with further tasks; repeatable")
    parser.add_argument("--num_fewshot", type=cli.number(int, low=0), help="examples in the prompt")
    parser.add_argument("--limit", type=cli.number(int, low=1), help="only this many documents of each task")
    parser.add_argument("--apply_chat_template", action="store_true", help="write prompts as chats")
    parser.add_argument(
        "--allow_unsafe_code", action="store_true", help="let the harness run a model's code unprotected"
    )
    parser.add_argument("--answers", help="folder where answers are kept as they come")
    parser.add_argument("--seed", type=cli.number(int, low=0), default=0, help="of examples and draws")
    parser.add_argument("--mesh", type=cli.mesh, help="split the model over all devices, such as fsdp:2,tensor:2")
    parser.add_argument("--dtype", default="float32", choices=COMPUTE_DTYPES, help="that is computed in")
    parser.add_argument("--output", required=True, help="JSON file for the harness's results and samples")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    flags = parse(argv)
    need_harness()
    cli.log_to_stderr()
    import lm_eval
    from lm_eval.utils import handle_non_serializable, make_table

    from fmjax.cache_folder import use_compilation_cache

    use_compilation_cache()
    names = [name.strip() for name in flags.tasks.split(",") if name.strip()]
    model = HarnessModel(
        flags.model, seed=flags.seed, answers=flags.answers, progress=True, dtype=flags.dtype, mesh=flags.mesh
    )
    manager = task_manager(names, flags.include_path)
    found = {name: manager.match_tasks([name]) for name in names}
    if missing := [name for name in names if not found[name]]:
        raise InputError(f"unknown tasks {', '.join(missing)}: neither the harness's own nor in --include_path")
    try:
        results = lm_eval.simple_evaluate(
            model=model,
            tasks=[one for name in names for one in found[name]],
            num_fewshot=flags.num_fewshot,
            limit=flags.limit,
            apply_chat_template=flags.apply_chat_template,
            fewshot_random_seed=flags.seed,
            task_manager=manager,
            confirm_run_unsafe_code=flags.allow_unsafe_code,
        )
    except ConnectionError as error:
        raise InputError(
            f"the harness cannot fetch a task's documents: {error}; it needs the network the first time, or a task of "
            "the same name with local files, given by --include_path"
        ) from None
    import jax

    if jax.process_index() == 0:
        path = pathlib.Path(flags.output)
        text = json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
        print(make_table(results))


if __name__ == "__main__":
    sys.exit(cli.run(main))
