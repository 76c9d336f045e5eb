"""The way back: every family, trained a little, loaded by its own library alone."""

import pytest
import torch
import transformers
from torch.nn.functional import normalize
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from hf_vse.cli.main import main
from hf_vse.embed.adapters.transformers_models import READINGS, TransformersEncoder, processor_of
from hf_vse.embed.adapters.vse import VSEEncoder
from hf_vse.embed.run import encode_images, encode_texts
from hf_vse.embed.sentences import Reading
from hf_vse.hub.export import LAST_LINEAR, SENTENCE, USUAL, export_model, formats_of
from hf_vse.model.dual_encoder_vse import DUAL_ENCODERS
from hf_vse.model.modeling_vse import VSEModel
from tests.embed.test_transformers_models import CASES, TEXTS, images, save

FOLDED = [family for family in DUAL_ENCODERS if None not in LAST_LINEAR.get(family, USUAL)]


def trained_model(folder, case, tokenizer, **options) -> VSEEncoder:
    """A saved model that started as a dual encoder and has other weights, temperature and bias since."""
    save(folder / "source", case, tokenizer)
    source = TransformersEncoder.from_pretrained(str(folder / "source"), "cpu")
    model = VSEModel.from_dual_encoder(source.model, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder / "run")
    processor_of(str(folder / "source")).save_pretrained(folder / "run")
    return VSEEncoder.from_pretrained(folder / "run", "cpu")


@pytest.fixture(scope="module")
def trained(tokenizer, tmp_path_factory):
    def make(family: str, **options) -> VSEEncoder:
        return trained_model(tmp_path_factory.mktemp("trained"), CASES[family], tokenizer, **options)

    return make


def vectors(encoder):
    return encode_images(encoder, [{"image": image} for image in images()]).embeds, encode_texts(encoder, TEXTS)


def loaded(folder, family: str):
    """The model of the folder, nothing missing and nothing left over."""
    how = DUAL_ENCODERS[family]
    model_class = getattr(transformers, how.model_class)
    model, found = model_class.from_pretrained(folder, output_loading_info=True, attn_implementation=how.attention)
    assert not any(found[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@torch.no_grad()
def vectors_by_transformers(folder, family: str):
    model, how = loaded(folder, family), DUAL_ENCODERS[family]
    image_processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    pixels = dict(image_processor(images(), return_tensors="pt"))
    tokenizer, reading = transformers.AutoTokenizer.from_pretrained(folder), READINGS.get(family, Reading())
    texts = [text.lower() for text in TEXTS] if reading.lower else TEXTS
    padding = {"padding": "max_length", "padding_side": "right"} if reading.to_full_length else {"padding": True}
    tokens = dict(tokenizer(texts, truncation=True, return_tensors="pt", **padding))
    names = ("input_ids", "attention_mask") if reading.mask else ("input_ids",)
    outputs = how.output("image", model, **pixels), how.output("text", model, **{name: tokens[name] for name in names})
    return tuple(normalize(output.pooler_output, dim=-1) for output in outputs)


@pytest.mark.parametrize("family", DUAL_ENCODERS)
def test_every_family_goes_back(family, trained, tmp_path):
    encoder = trained(family)
    folder = tmp_path / "back"
    record = export_model(encoder, "transformers", folder)
    assert record["format"] == formats_of(encoder.model)[0] == family and record["largest_difference"] < 5e-6
    for ours, theirs in zip(vectors(encoder), vectors_by_transformers(folder, family), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=5e-6)
    back, (temperature, bias) = loaded(folder, family), encoder.model.scaling()
    if hasattr(back, "logit_scale"):
        torch.testing.assert_close(back.logit_scale.exp().squeeze(), 1 / temperature)
    elif hasattr(back, "temperature"):
        torch.testing.assert_close(back.temperature, temperature)
    else:
        assert record["left_out"] == ["temperature"]
    assert not hasattr(back, "logit_bias") or back.logit_bias.item() == pytest.approx(bias.item())
    texts = "".join(path.read_text() for path in folder.glob("*.json"))
    assert "auto_map" not in texts and "VSE" not in texts and "vse" not in texts and not list(folder.glob("*.py"))
    processor = transformers.AutoProcessor.from_pretrained(folder)
    assert type(processor).__name__ == PROCESSOR_MAPPING_NAMES[family]


@pytest.mark.parametrize("family", FOLDED)
def test_square_maps_are_multiplied_in(family, trained, tmp_path):
    encoder = trained(family, projection_type="linear")
    before = encoder.model.state_dict()
    assert export_model(encoder, family, tmp_path / "back")["largest_difference"] < 5e-6
    plain = vectors_by_transformers(tmp_path / "back", family)
    for ours, theirs in zip(vectors(encoder), plain, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=5e-6)
    for name, tensor in encoder.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("family", ["clip", "align", "aimv2", "siglip", "siglip2", "vision-text-dual-encoder"])
def test_sentence_transformers_loads_it(family, trained, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    encoder = trained(family)
    assert export_model(encoder, SENTENCE, tmp_path / "back", check=False)["largest_difference"] is None
    model = library.SentenceTransformer(str(tmp_path / "back"), device="cpu", trust_remote_code=False)
    ours = vectors(encoder)
    found = model.encode(images(), convert_to_tensor=True), model.encode(TEXTS, convert_to_tensor=True)
    for expected, theirs in zip(ours, found, strict=True):
        torch.testing.assert_close(theirs, expected, rtol=0, atol=5e-6)
    assert model.similarity(*found).shape == (len(images()), len(TEXTS))


def test_scalars_without_a_place_are_named(trained, tmp_path):
    encoder = trained("clip", loss_type="siglip")
    assert export_model(encoder, "clip", tmp_path / "back", check=False)["left_out"] == ["logit_bias"]
    fixed = trained("siglip", loss_type="nce", temperature=0.25)
    export_model(fixed, "siglip", tmp_path / "fixed", check=False)
    back = loaded(tmp_path / "fixed", "siglip")
    assert back.logit_scale.exp().item() == pytest.approx(4) and back.logit_bias.item() == 0


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("siglip", {"projection_type": "linear"}),
        ("clip", {"projection_type": "residual"}),
        ("clip", {"projection_type": "mlp"}),
        ("clip", {"vision_power": 0.5}),
    ],
)
def test_heads_that_a_format_cannot_hold_are_refused(family, options, trained, tmp_path):
    with pytest.raises(ValueError, match="train with projection_type 'none' and vision_power 1, or publish it"):
        export_model(trained(family, **options), family, tmp_path / "back")
    assert not list(tmp_path.iterdir())


def test_mirror_average_is_refused(trained, tmp_path):
    with pytest.raises(ValueError, match="has mirror_average, which the format 'clip' cannot hold: save it without"):
        export_model(trained("clip", mirror_average=True), "clip", tmp_path / "back")


def test_wrong_vectors_are_refused_and_leave_nothing(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_vse.hub.export.LARGEST_DIFFERENCE", -1.0)
    with pytest.raises(ValueError, match="as clip gives vectors that differ by"):
        export_model(trained("clip"), "clip", tmp_path / "back")
    assert not list(tmp_path.iterdir())


def test_the_command_refuses_in_one_line(trained, tiny_model, tmp_path, capsys):
    clip = trained("clip").name
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for model, given, place, message in (
        (tiny_model, "clip", "back", "has no format 'clip': give one of onnx"),
        (clip, "siglip", "back", "has no format 'siglip': give one of clip, sentence-transformers, open_clip, onnx"),
        (clip, "clip", "full", "is not empty (notes.txt, ...): give a new or an empty one"),
    ):
        words = ["export", str(model), "--format", given, "--output", str(tmp_path / place), "--quiet"]
        assert main(words) == 1
        [line] = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error:")]
        assert message in line
    assert main(["export", clip, "--format", "transformers", "--output", str(tmp_path / "back"), "--quiet"]) == 0
    assert "vectors differ by at most" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]
