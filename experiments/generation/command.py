"""From the command to the last token, by fmjax and by a script of `transformers`: command.py FOLDER [--repeats=3]

Each runs in a process of its own, in turns: fmjax with nothing compiled ("cold"), with all of it kept ("warm"), and
transformers. Prints the medians of seconds, of seconds of processor time, and the largest memory.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
PROMPT = "Once upon a time, in a small village,"
SCRIPT = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, prompt, count = sys.argv[1:]
torch.set_num_threads(2)
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
found = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=int(count), do_sample=False)
print(tokenizer.decode(found[0]))
"""


def run(command: list[str], cache: str) -> tuple[float, float, float]:
    """(seconds, processor seconds, MB at most) of a process."""
    start = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "FMJAX_CACHE": cache}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} ended with {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a published folder of weights and a tokenizer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--new_tokens", type=int, default=48)
    flags = parser.parse_args()
    options = [f"--prompt={PROMPT}", f"--max_new_tokens={flags.new_tokens}", "--temperature=0"]
    ours = [sys.executable, "-m", "fmjax.generate", f"--model={flags.folder}", *options]
    theirs = [sys.executable, "-c", SCRIPT, flags.folder, PROMPT, str(flags.new_tokens)]
    found = {"fmjax, cold": [], "fmjax, warm": [], "transformers": []}
    for _ in range(flags.repeats):
        with tempfile.TemporaryDirectory() as cache:
            for name, command in zip(found, (ours, ours, theirs)):
                found[name].append(run(command, cache))
    print("| | seconds | processor seconds | peak MB |\n|---|---|---|---|")
    for name, runs in found.items():
        seconds, processor, memory = map(statistics.median, zip(*runs))
        print(f"| {name} | {seconds:.1f} | {processor:.1f} | {memory:.0f} |")


if __name__ == "__main__":
    main()
