"""Pictures in few bytes, by a VAE and by JPEG: `python experiments/vae_jpeg/run.py [--runs=DIR]`

Trains `configs/vae_shapes.py` (a finished run is used as it is). The means of the latents of held-out pictures are
rounded to multiples of a step, for several steps, and counted in the bits that an arithmetic coder takes whose
frequencies, a table for each channel, are those of training pictures. JPEG has the same pictures as one mosaic, so
that its header is paid once, at several qualities. Writes `results.json`, `rates.png` and `pictures.png`.
"""

import argparse
import io
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import runs  # noqa: E402

COLUMNS = 32
STEPS = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25)
QUALITIES = (1, 2, 5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90)
SHOWN = 12


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=pathlib.Path, default=HERE.parents[1] / "runs")
    parser.add_argument("--pictures", type=int, default=480, help="held-out ones; a multiple of 32")
    parser.add_argument("--steps", type=int, help="of training; default: the config's")
    flags = parser.parse_args()
    if flags.pictures % COLUMNS or flags.pictures <= 0:
        parser.error(f"--pictures={flags.pictures} is not a multiple of {COLUMNS}, the mosaic's columns")
    changes = {"train__steps": flags.steps} if flags.steps else {}
    metrics = runs.train("vae_shapes.py", flags.runs / "vae_shapes", **changes)

    import fmjax

    model = fmjax.load(flags.runs / "vae_shapes")
    training, held_out = pictures(model, 2000, flags.pictures)
    tables = latents(model, training)
    own = [vae_point(model, held_out, tables, step) for step in STEPS]
    mosaic = joined(held_out)
    jpeg = [jpeg_point(mosaic, quality) for quality in QUALITIES]
    results = {
        "pictures": len(held_out),
        "eval": {key: value for key, value in metrics[-1].items() if key.startswith("eval/")},
        "vae": [dict(zip(("step", "bytes", "psnr"), point[:3])) for point in own],
        "jpeg": [dict(zip(("quality", "bytes", "psnr"), point[:3])) for point in jpeg],
    }
    runs.save(HERE, results)
    curves = {"VAE": ([p[1] for p in own], [p[2] for p in own]), "JPEG": ([p[1] for p in jpeg], [p[2] for p in jpeg])}
    runs.plot(HERE / "rates.png", curves, "PSNR, dB", xlabel="bytes a picture", xscale="log")
    show(held_out, own, jpeg)
    for name, points in (("VAE", own), ("JPEG", jpeg)):
        for at, size, psnr, _ in points:
            print(f"{name} {at}: {size:.1f} bytes a picture, {psnr:.2f} dB")


def pictures(model, training: int, held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, H, W, 3] pictures of the world of shapes, trained on and not."""
    from fmjax.cache_folder import cache_dir
    from fmjax.data.shapes.data import Shapes

    data = Shapes(image_size=model.module.image_size, rows="count", eval_examples=held_out)
    opened = data.open(seed=0, cache_dir=cache_dir())
    decode = lambda rows, count: np.stack([model.codec.decode(rows[i]) for i in range(count)])
    return decode(opened.train, training), decode(opened.evaluation["heldout"], held_out)


def latents(model, images: np.ndarray, size: int = 32) -> np.ndarray:
    """float32 [N, h, w, C] means of the latents."""
    import jax

    encode = jax.jit(lambda variables, x: model.module.apply(variables, x, method="encode"))
    rows = np.stack([model.codec.encode(image)["images"] for image in images])
    return np.concatenate([encode(model.variables, rows[i : i + size]) for i in range(0, len(rows), size)])


def decoded(model, codes: np.ndarray, size: int = 32) -> np.ndarray:
    """uint8 pictures of latents."""
    import jax

    decode = jax.jit(lambda variables, x: model.module.apply(variables, x, method="decode"))
    rows = np.concatenate([decode(model.variables, codes[i : i + size]) for i in range(0, len(codes), size)])
    return np.stack([model.codec.decode({model.codec.array: row}) for row in rows])


def vae_point(model, images, training: np.ndarray, step: float):
    """(step, bytes a picture, PSNR, pictures) of latents rounded to multiples of a step."""
    numbers = lambda x: np.rint(x / step).astype(np.int64)
    known, new = numbers(training), numbers(latents(model, images))
    bits = sum(code_length(known[..., c].ravel(), new[..., c].ravel()) for c in range(new.shape[-1]))
    made = decoded(model, (new * step).astype(np.float32))
    return step, bits / 8 / len(images), psnr(images, made), made


def code_length(known: np.ndarray, new: np.ndarray) -> float:
    """Bits of whole numbers by frequencies of others. Each number between the extremes of both counts once more than
    it was seen, so that none is impossible; the extremes themselves are not sent."""
    low, high = min(known.min(), new.min()), max(known.max(), new.max())
    counts = np.bincount(known - low, minlength=high - low + 1) + 1.0
    return float(-np.log2(counts / counts.sum())[new - low].sum())


def jpeg_point(mosaic: np.ndarray, quality: int):
    """(quality, bytes a picture, PSNR, pictures) of the mosaic by JPEG, as small as Pillow writes it."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(mosaic).save(file, "JPEG", quality=quality, optimize=True)
    made = np.asarray(Image.open(file))
    count = COLUMNS * COLUMNS * mosaic.shape[0] // mosaic.shape[1]
    return quality, len(file.getvalue()) / count, psnr(mosaic, made), parted(made, count)


def joined(images: np.ndarray) -> np.ndarray:
    """[N, S, S, 3] pictures as one of `COLUMNS` columns."""
    count, side = images.shape[:2]
    rows = images.reshape(count // COLUMNS, COLUMNS, side, side, 3).swapaxes(1, 2)
    return rows.reshape(count // COLUMNS * side, COLUMNS * side, 3)


def parted(mosaic: np.ndarray, count: int) -> np.ndarray:
    """The pictures of `joined`."""
    side = mosaic.shape[1] // COLUMNS
    return mosaic.reshape(-1, side, COLUMNS, side, 3).swapaxes(1, 2).reshape(count, side, side, 3)


def psnr(images: np.ndarray, made: np.ndarray) -> float:
    """Of all pixels together, in decibels."""
    error = np.mean((images.astype(np.float64) - made) ** 2)
    return float(10 * np.log10(255**2 / error))


def show(images: np.ndarray, own: list, jpeg: list) -> None:
    """The first pictures; below them the VAE's at each step, and JPEG's of the nearest size."""
    from PIL import Image

    rows = [images[:SHOWN]]
    for point in own:
        near = min(jpeg, key=lambda other: abs(other[1] - point[1]))
        rows += [point[3][:SHOWN], near[3][:SHOWN]]
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    Image.fromarray(np.kron(sheet, np.ones((2, 2, 1), np.uint8))).save(HERE / "pictures.png")


if __name__ == "__main__":
    main()
