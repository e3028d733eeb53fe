"""Are made digits the ones that were asked for? `python experiments/digits_made/run.py [--runs=DIR]`

Trains `configs/dit_digits.py` (a finished run is used as it is), makes digits, and asks a classifier that has only seen
real ones. Writes `results.json` and `samples.png` beside this file.
"""

import argparse
import json
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from runs import last, setting, train  # noqa: E402

COUNT = 100  # of each class
GUIDANCE = (1.0, 1.5)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=pathlib.Path, default=HERE.parents[1] / "runs")
    workdir = parser.parse_args().runs / "dit_digits"
    metrics = train("dit_digits.py", workdir)

    from sklearn.svm import SVC

    import fmjax
    from fmjax.data.codecs.image import grid
    from fmjax.data.digits import Digits

    data = Digits(max_shift=0).open(seed=0, cache_dir=pathlib.Path())
    test_rows = [data.evaluation["test"][i] for i in range(len(data.evaluation["test"]))]
    train_rows = [data.train[i] for i in range(1797 - len(test_rows))]  # an epoch
    real, test = (np.stack([row["images"].ravel() for row in rows]) for rows in (train_rows, test_rows))
    real_labels, test_labels = (np.array([row["labels"] for row in rows]) for rows in (train_rows, test_rows))
    classifier = SVC(gamma=0.02).fit(real, real_labels)

    model = fmjax.load(workdir)
    asked = np.repeat(np.arange(10), COUNT)
    results = {"setting": setting(), "eval_loss": last(metrics, "eval/loss"), "samples": len(asked)}
    results["classifier_on_real_test_digits"] = float(classifier.score(test, test_labels))
    results["nearest_training_image_of_a_real_test_digit"] = float(np.median(nearest(test, real)))
    for guidance in GUIDANCE:
        images = model.generate(range(10), num_samples=COUNT, guidance=guidance, seed=0)
        made = np.stack([model.codec.encode(image)["images"].ravel() for image in images])
        read = classifier.predict(made)
        results[f"guidance {guidance}"] = {
            "read_as_asked": float(np.mean(read == asked)),
            "read_as_the_next_class_control": float(np.mean(read == (asked + 1) % 10)),
            "nearest_training_image": float(np.median(nearest(made, real))),
            "equal_to_a_training_image": int(np.sum(nearest(made, real) < 1e-3)),
        }
    shown = model.generate(range(10), num_samples=12, guidance=GUIDANCE[-1], seed=0)
    model.codec.write(np.kron(grid(shown, columns=12), np.ones((5, 5, 1), np.uint8)), HERE / "samples.png")
    (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


def nearest(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Root of the mean squared difference to the nearest of the others, for each image; pixels are in [-1, 1]."""
    squares = ((images[:, None] - others[None]) ** 2).mean(axis=-1)
    return np.sqrt(squares.min(axis=1))


if __name__ == "__main__":
    main()
