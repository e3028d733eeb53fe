"""Published U-Nets and autoencoders of diffusers: what they compute, their gradients, and folders written back.

make_unet_fixtures.py wrote the fixtures, and check_vision_exports.py has the PyTorch classes load what is saved here.
"""

import json

import folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from test_parity import published_names

import fmjax
from fmjax.config import build
from fmjax.diffusion.grids import make_grid
from fmjax.diffusion.guidance import Guidance, predictor
from fmjax.diffusion.samplers import DDIM, columns, sample
from fmjax.errors import ConfigError, InputError
from fmjax.interop.family import family_of, publish, read_section
from fmjax.interop.published_objective import read_objective, write_objective
from fmjax.interop.unet import DDPM_PIPELINE
from fmjax.models import MODELS
from fmjax.models.autoencoder_kl import normal_kl
from fmjax.models.unet import UNet

FIXED = ("pos_embed.pos_embed",)
CASES = ("unet_ddpm", "unet_adm", "unet_text")


def channels_last(x):
    return x.transpose(0, 2, 3, 1)


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """(fixture, folder, model) of a U-Net."""
    return write(tmp_path_factory.mktemp("published"), request.param)


def write(within, name):
    """(fixture, folder, model) of a fixture."""
    fixture = folders.read_vision(name)
    folder = folders.write_vision(within, fixture) / "part"
    return fixture, folder, fmjax.load(folder)


def inputs_of(fixture):
    found = {"inputs": channels_last(fixture["inputs"]), "times": np.float32(fixture["times"] / 1000)}
    names = {"labels": "labels", "memory": "memory", "mask": "memory_mask"}
    return found | {ours: fixture[name] for name, ours in names.items() if name in fixture}


def test_output_and_gradients_are_those_of_diffusers(case):
    fixture, _, model = case
    target = channels_last(fixture.get("target", np.zeros_like(fixture["out"])))

    def both(params):
        out = model.module.apply({"params": params}, **inputs_of(fixture))
        return (out * target).sum(), out

    if "target" not in fixture:
        out = jax.jit(both)(model.params)[1]
        np.testing.assert_allclose(out, channels_last(fixture["out"]), atol=1e-4 * np.abs(fixture["out"]).max())
        return
    gradients, out = jax.jit(jax.grad(both, has_aux=True))(model.params)
    np.testing.assert_allclose(out, channels_last(fixture["out"]), atol=1e-4 * np.abs(fixture["out"]).max())
    named, expected = published_names(model, gradients), folders.part(fixture, "gradient/")
    assert set(named) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(named[name], value, atol=1e-4 * max(np.abs(value).max(), 1), err_msg=name)


def check_written(fixture, folder, model, saved):
    """That a model is saved as the folder it came from."""
    model.save(saved, format="hf")
    written = load_file(saved / "diffusion_pytorch_model.safetensors")
    weights = folders.part(fixture, "weight/part/")
    assert set(written) == set(weights)
    for name, value in weights.items():
        # What no parameter holds is computed anew.
        np.testing.assert_allclose(written[name], value, rtol=0, atol=1e-6 * (name in FIXED), err_msg=name)
    ours, theirs = (json.loads((at / "config.json").read_text()) for at in (saved, folder))
    assert {key: value for key, value in ours.items() if theirs.get(key, value) != value} == {}
    assert fmjax.load(saved).module == model.module


def test_saving_gives_the_published_folder_back(case, tmp_path):
    check_written(*case, tmp_path / "saved")


def test_a_pipeline_of_one_net_loads_whole_and_its_old_names_of_attention_are_known(tmp_path):
    fixture = folders.read_vision("unet_ddpm")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    inside = {}
    for name, value in folders.part(fixture, "weight/part/").items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        inside[f"weight/unet/{name}"] = value
    assert any("proj_attn" in name for name in inside)
    index = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}
    inside |= {"file/unet/config.json": fixture["file/part/config.json"], "file/model_index.json": json.dumps(index)}
    model = fmjax.load(folders.write_vision(tmp_path / "published", inside))
    model.save(tmp_path / "saved", format="hf")
    written = load_file(tmp_path / "saved" / "unet" / "diffusion_pytorch_model.safetensors")
    for name, value in folders.part(fixture, "weight/part/").items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)
    assert json.loads((tmp_path / "saved" / "model_index.json").read_text()) == index


def test_a_scheduler_says_the_objective_and_comes_back():
    values = {
        "_class_name": "DDPMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
        "num_train_timesteps": 1000, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
        "variance_type": "learned_range",
    }  # fmt: skip
    read = lambda values: read_objective(DDPM_PIPELINE, {"scheduler": values}, "model_index.json")
    section = read(values)
    assert section == {
        "name": "diffusion", "target": {"name": "v"}, "learned_variance": True,
        "process": {
            "name": "ddpm", "betas": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
            "zero_terminal_snr": True,
        },
    }  # fmt: skip
    assert write_objective(DDPM_PIPELINE, section) == {"scheduler": values}
    plain = write_objective(DDPM_PIPELINE, {"name": "diffusion"})["scheduler"]
    assert plain["prediction_type"] == "epsilon" and read(plain) == read({"clip_sample": False})
    for changes, match in (
        (dict(num_train_timesteps=100), "scheduler: num_train_timesteps = 100"),
        (dict(thresholding=True), "scheduler: thresholding = True"),
        (dict(variance_type="learned"), "variance_type = 'learned' is not known here"),
        (dict(beta_schedule="exp"), "beta_schedule = 'exp'.*known: linear"),
    ):
        with pytest.raises(ConfigError, match=match):
            read(values | changes)
    for section, match in (
        ({"process": {"name": "flow"}}, "a DDPMScheduler is of 'ddpm'"),
        ({"target": {"name": "velocity"}}, "no target 'velocity'"),
    ):
        with pytest.raises(ConfigError, match=match):
            write_objective(DDPM_PIPELINE, {"name": "diffusion", **section})


@pytest.mark.parametrize(
    "net, expected", [({}, {}), ({"_null_class": True}, {}), ({"_null_class": None}, {"label_dropout": 0.0})]
)
def test_a_net_of_classes_without_a_row_for_none_has_learnt_nothing_without_them(net, expected):
    net = {"num_class_embeds": 11, **net} if net else net
    section = read_objective(DDPM_PIPELINE, {"unet": net, "scheduler": {}}, "model_index.json")
    assert {key: value for key, value in section.items() if key == "label_dropout"} == expected


def test_the_same_noise_becomes_the_same_images(tmp_path):
    """Five steps of DDIM with a folder's own process and target."""
    fixture = folders.read_vision("unet_ddpm")
    inside = {f"weight/unet/{name}": value for name, value in folders.part(fixture, "weight/part/").items()}
    index = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}
    index |= {"scheduler": ["diffusers", "DDPMScheduler"]}
    inside |= {"file/unet/config.json": fixture["file/part/config.json"], "file/model_index.json": json.dumps(index)}
    inside |= {"file/scheduler/scheduler_config.json": json.dumps({"_class_name": "DDPMScheduler"})}
    model = fmjax.load(folders.write_vision(tmp_path / "published", inside))
    objective = model.objective

    @jax.jit
    def run(params, x):
        apply = lambda x, times, given: model.module.apply({"params": params}, x, times)
        predict = predictor(apply, objective.process, objective.target, Guidance())
        along = columns(DDIM(), make_grid(objective.process, 5), objective.process)
        return sample(DDIM(), predict, x, along)

    found = run(model.params, channels_last(fixture["inputs"]))
    want = channels_last(fixture["sampled"])
    np.testing.assert_allclose(found, want, atol=1e-4 * np.abs(want).max())
    model.save(tmp_path / "saved", format="hf")
    again = fmjax.load(tmp_path / "saved")
    assert again.objective == objective and again.codecs == model.codecs
    assert json.loads((tmp_path / "saved" / "model_index.json").read_text()) == index


def test_the_size_of_ddpm_is_the_published_one():
    """google/ddpm-cifar10-32 has 35,746,307 parameters."""
    module = UNet(image_size=32, num_channels=3, num_classes=0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), **module.example())
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 35_746_307


SMALL = dict(image_size=8, num_channels=3, widths=(8, 16), attention=("none", "self"), norm_groups=4)


def test_a_run_of_ours_has_a_published_class():
    """A row for no class is told by a key that diffusers passes over."""
    for fields in (dict(num_classes=0), dict(num_classes=5, null_class=False), dict(num_classes=5)):
        family, values = publish(UNet(**SMALL, **fields))
        assert family.architectures == ("UNet2DModel",)
        assert values["num_class_embeds"] == {0: None, 5: 5 + fields.get("null_class", True)}[fields["num_classes"]]
    cross = SMALL | dict(attention=("cross", "none"), mid="cross", memory_size=6, num_heads=(2, 4), num_layers=(2, 1))
    family, values = publish(UNet(**cross, num_classes=0))
    assert family.architectures == ("UNet2DConditionModel",)
    assert values["attention_head_dim"] == [2, 4] and values["transformer_layers_per_block"] == [2, 1]
    for fields, match in (
        (dict(attention=("cross", "self")), "2DModel: it has no attention 'cross'; UNet2DCond.*no level 'self'"),
        (dict(resize="block"), r"it has no attention \('cross', 'none'\) with resize 'block'"),
    ):
        with pytest.raises(InputError, match=match):
            publish(UNet(**cross | fields, num_classes=0))


@pytest.mark.parametrize(
    "name, changes, match",
    [
        ("unet_ddpm", dict(center_input_sample=True), "center_input_sample = True"),
        ("unet_ddpm", dict(time_embedding_type="fourier"), "time_embedding_type = 'fourier'"),
        ("unet_ddpm", dict(down_block_types=["SkipDownBlock2D", "DownBlock2D"]), "'SkipDownBlock2D'.*AttnDownBlock2D"),
        ("unet_ddpm", dict(up_block_types=["UpBlock2D", "AttnUpBlock2D"]), "up_block_types = .*mirror image of"),
        ("unet_adm", dict(upsample_type="conv", up_block_types=["UpBlock2D"] * 2), "up_block_types = "),
        ("unet_ddpm", dict(mid_block_type="UNetMidBlock2DCrossAttn"), "mid_block_type = "),
        ("unet_text", dict(mid_block_type="UNetMidBlock2D"), "mid_block_type = 'UNetMidBlock2D'"),
        ("unet_text", dict(addition_embed_type="text_time"), "addition_embed_type = 'text_time'"),
        ("unet_text", dict(attention_head_dim="8"), "attention_head_dim = '8'.*one a level"),
        ("unet_text", dict(attention_head_dim=3), "4 channels of level 0 do not divide into 3 heads"),
        ("autoencoder_kl", dict(latents_mean=[0.1, 0.2]), "latents_mean = "),
        ("autoencoder_kl", dict(down_block_types=["DownBlock2D"] * 2), "down_block_types = "),
    ],
)
def test_options_of_the_classes_that_are_another_function_are_refused(name, changes, match):
    values = json.loads(str(folders.read_vision(name)["file/part/config.json"])) | changes
    with pytest.raises(ConfigError, match=match):
        build(read_section(family_of(values, "config.json"), values, (), "config.json"), MODELS)


def test_what_a_net_lacks_is_said():
    module = UNet(**SMALL, num_classes=5)
    with pytest.raises(ConfigError, match="model.num_classes = 5, but there are no labels"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros(1))
    for fields, match in (
        (dict(attention=("self",)), "model.attention = .*one a level"),
        (dict(attention=("none", "cross"), num_heads=(1, 1), num_layers=(1, 1)), "model.memory_size = 0, with attent"),
        (dict(image_size=9), "9x9 pixels cannot be halved 1 times"),
        (dict(head_dim=3), "model.head_dim = 3 does not divide 16"),
    ):
        with pytest.raises(ConfigError, match=match):
            UNet(**SMALL | fields)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """(fixture, folder, model) of an autoencoder."""
    return write(tmp_path_factory.mktemp("published"), "autoencoder_kl")


def test_an_autoencoder_encodes_and_decodes_as_diffusers_does(autoencoder):
    fixture, _, model = autoencoder
    images = channels_last(fixture["images"])

    @jax.jit
    def run(params):
        call = lambda method, x: model.module.apply({"params": params}, x, method=method)
        mean, log_variance = call("moments", images)
        return mean, log_variance, call("decode", mean), normal_kl(mean, log_variance)

    mean, log_variance, decoded, kl = run(model.params)
    moments = channels_last(fixture["moments"])
    np.testing.assert_allclose(mean, moments[..., :2], atol=1e-4)
    np.testing.assert_allclose(log_variance, moments[..., 2:], atol=1e-4)
    np.testing.assert_allclose(decoded, channels_last(fixture["decoded"]), atol=1e-4)
    np.testing.assert_allclose(kl, fixture["kl"], rtol=1e-5)
    assert model.module.latent_shape == (4, 4, 2)
    assert (model.module.scaling_factor, model.module.shift_factor) == (0.5, 0.25)


def test_an_autoencoder_is_written_back(autoencoder, tmp_path):
    check_written(*autoencoder, tmp_path / "saved")
