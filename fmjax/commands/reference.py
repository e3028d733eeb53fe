"""What a reference model says of judged answers, computed once: the same records with `reference_logprobs`.

    python -m fmjax.commands.reference --model=runs/sft_tiny --source=PAIRS.jsonl --output=WITH_REFERENCE.jsonl

Training on these (`data.name = "preferences"`) needs no reference beside the model: `objective.reference` stays empty.
"""

import json
import pathlib
import sys

from fmjax.commands import cli
from fmjax.data.chats.comparisons import read_comparison
from fmjax.data.chats.corpus import encode_record
from fmjax.data.chats.ranked import PreferenceData
from fmjax.data.chats.sources import open_chats
from fmjax.data.sources import SourceSpec
from fmjax.inference.segments import Segment
from fmjax.layers.checks import COMPUTE_DTYPES
from fmjax.small_files import write_whole


def parse(argv: list[str]):
    parser = cli.ArgumentParser("python -m fmjax.commands.reference", "Log-probabilities of answers under a reference.")
    parser.add_argument("--model", required=True, help="workdir of a run, a Hugging Face folder, or a hub id")
    parser.add_argument("--source", required=True, help="records with chosen and rejected, or ranked responses")
    parser.add_argument("--output", required=True, help="JSONL file for the records; it must not be there yet")
    parser.add_argument("--mesh", type=cli.mesh, help="split the model over all devices, such as fsdp:2,tensor:2")
    parser.add_argument("--dtype", default="float32", choices=COMPUTE_DTYPES, help="that is computed in")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    flags = parse(argv)
    cli.log_to_stderr()
    output = cli.new_output(flags.output)
    from fmjax.cache_folder import cache_dir, use_compilation_cache
    from fmjax.load import load

    use_compilation_cache()
    model = load(flags.model, dtype=flags.dtype, mesh=flags.mesh)
    records = with_reference(model, flags.source, cache_dir(), progress=sys.stderr.isatty())
    write_whole(output, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    print(f"wrote {output}: {len(records)} records")


def with_reference(model, source: str, cache_dir: pathlib.Path, progress: bool = False) -> list[dict]:
    """The records of judged answers with `reference_logprobs`: of each answer, its end included, under the model.

    Args:
      model: a `fmjax.load.Model` of a decoder with a chat template.
      source: as `data.source` of `fmjax.data.chats.ranked.PreferenceData`; all splits.

    Raises DataError, naming file and row, for what is no record of judged answers.
    """
    found = open_chats(SourceSpec(source), cache_dir, read_comparison, PreferenceData.BUILTIN, skip_bad=False)
    records, segments, owners = [], [], []
    for _, _, where, record in found.records.read():
        comparison = read_comparison(record, where)
        for chat in encode_record(comparison.chats(), comparison, model.tokenizer, "last"):
            segments.append(Segment(chat.to_its_end().ids, chat.learnt.index(1)))
            owners.append(len(records))
        records.append({**record, "reference_logprobs": []})
    scores = dict(model.iter_scores(segments, "answers" if progress else None))
    for index, owner in enumerate(owners):
        records[owner]["reference_logprobs"].append(scores[index][0])
    return records


if __name__ == "__main__":
    cli.leave(cli.run(main))
