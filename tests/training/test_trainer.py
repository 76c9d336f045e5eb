import copy
import logging
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from transformers import CLIPImageProcessorPil, TrainerCallback

from hf_vse.data.decoding import BrokenImageError
from hf_vse.data.long_captions import report_cut, report_long_captions
from hf_vse.data.pairs import PairDataset
from hf_vse.data.streams import StreamedPairs
from hf_vse.embed.adapters.vse import VSEEncoder
from hf_vse.embed.run import encode_texts
from hf_vse.evaluation.diagnostics.geometry import mean_cosine
from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.model.losses_vse import OBJECTIVES, contrastive_loss
from hf_vse.model.modeling_vse import MAX_LOGIT_SCALE, VSEModel
from hf_vse.model.processing_vse import VSEProcessor
from hf_vse.training.arguments import VSETrainingArguments
from hf_vse.training.callbacks import BatchDiagnostics, CollapseAlarm, indifferent_loss, remedy, separation
from hf_vse.training.trainable import unused_parameters
from hf_vse.training.trainer import VSETrainer, first_batch
from tests.conftest import WORDS, make_feature_pairs, make_pairs
from tests.faults.killing import slow

DIM = 16


def make_model(tokenizer, vision=None, **options) -> VSEModel:
    torch.manual_seed(0)
    text = {"vocab_size": len(tokenizer), "word_dim": 8, "hidden_size": DIM}
    vision = vision or {"model_type": "vse_features", "hidden_size": DIM}
    return VSEModel(VSEConfig(vision_config=vision, text_config=text, **{"projection_dim": DIM} | options))


def arguments(folder, **options) -> VSETrainingArguments:
    defaults = {
        "per_device_train_batch_size": 8, "num_train_epochs": 2, "learning_rate": 1e-2, "logging_steps": 1,
        "disable_tqdm": True, "eval_strategy": "no", "save_strategy": "no", "lr_scheduler_type": "constant",
    }  # fmt: skip
    return VSETrainingArguments(output_dir=str(folder), **defaults | options)


def make_trainer(folder, tokenizer, train=None, model=None, processor=None, eval_dataset=None, **options):
    return VSETrainer(
        model or make_model(tokenizer),
        arguments(folder, **options),
        train_dataset=make_feature_pairs(24) if train is None else train,
        eval_dataset=eval_dataset,
        processing_class=processor or VSEProcessor(tokenizer=tokenizer),
    )


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    "loss_type",
    ["nce", "siglip", *(pytest.param(name, marks=slow) for name in ("hardnce_smooth", "hinge_sum", "clip"))],
)
def test_training_lowers_the_loss_and_raises_recall(loss_type, tokenizer, tmp_path):
    data = make_feature_pairs(24)
    model = make_model(tokenizer, loss_type=loss_type)
    trainer = make_trainer(tmp_path, tokenizer, data, model, eval_dataset=data, num_train_epochs=16)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert losses(trainer)[-1] < 0.7 * losses(trainer)[0]
    assert after["eval_rsum"] > before["eval_rsum"] + 80


def test_best_checkpoint_by_rsum_is_kept(tokenizer, tmp_path):
    data = make_feature_pairs(24)
    trainer = make_trainer(
        tmp_path, tokenizer, data, eval_dataset=data, num_train_epochs=4, eval_strategy="epoch", save_strategy="epoch"
    )
    trainer.train()
    measured = [entry["eval_rsum"] for entry in trainer.state.log_history if "eval_rsum" in entry]
    assert len(measured) == 4 and trainer.state.best_metric == max(measured)
    assert trainer.evaluate()["eval_rsum"] == pytest.approx(max(measured))


def test_loss_of_a_step_is_the_dense_reference_with_the_mask(tokenizer, tmp_path):
    trainer = make_trainer(tmp_path, tokenizer)
    trainer.current_gradient_accumulation_steps = 1  # as while training
    batch = next(iter(trainer.get_train_dataloader()))
    ids = {"image_ids": torch.tensor([0, 0, 1, 2, 3, 4, 5, 6]), "text_ids": torch.tensor([0, 1, 2, 3, 3, 4, 5, 3])}
    assert batch.keys() >= ids.keys()
    outputs = trainer.model(**{key: value for key, value in batch.items() if key not in ids})
    embeds = outputs.image_embeds, outputs.text_embeds
    found = []
    for kept in (["image_ids", "text_ids"], ["image_ids"], ["text_ids"], []):
        trainer.args.mask_same_image, trainer.args.mask_equal_captions = (name in kept for name in ids)
        expected = contrastive_loss(*embeds, loss_type="nce", **{name: ids[name] for name in kept})
        for size in (None, 3):
            trainer.args.grad_cache_batch_size = size
            found.append(trainer.compute_loss(trainer.model, batch | ids))
            torch.testing.assert_close(found[-1], expected)
    assert found[0] < min(found[2:5]) and max(found[2:5]) < found[6]


EXECUTIONS = {
    "auto": {},
    "chunked": {"loss_execution": "chunked", "loss_chunk_size": 3},
    "streamed": {"loss_execution": "streamed", "loss_chunk_size": 3},
    "grad_cache": {"grad_cache_batch_size": 3},
    "grad_cache_streamed": {"grad_cache_batch_size": 1, "loss_execution": "streamed"},
}


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_gradient_accumulation_averages_the_batches(execution, tokenizer, tmp_path):
    options = EXECUTIONS[execution] | {"gradient_accumulation_steps": 3, "max_steps": 1, "max_grad_norm": 0.0}
    trainer = make_trainer(tmp_path, tokenizer, **options)
    reference = make_model(tokenizer)
    batches = list(trainer.get_train_dataloader())[:3]
    for batch in batches:
        (reference(**batch, return_loss=True).loss / 3).backward()
    expected = {name: each.grad for name, each in reference.named_parameters()}
    seen = {}
    trainer.add_callback(GradientSpy(seen))
    trainer.train()
    assert seen.keys() == expected.keys()
    for name, gradient in seen.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negatives": "rign"}, "negatives is one of gather, ring, local, got 'rign'"),
        ({"loss_execution": "fast"}, "loss_execution is one of auto, dense, chunked, streamed, fused, got 'fast'"),
        ({"loss_chunk_size": 0}, "loss_chunk_size is a number from 1 to 1048576, got 0"),
        ({"grad_cache_batch_size": -1}, "grad_cache_batch_size is a number from 1 to 1048576, got -1"),
    ],
)
def test_execution_that_cannot_be_is_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **options)


class GradientSpy(CollapseAlarm):
    def __init__(self, seen):
        super().__init__(1)
        self.seen = seen

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.seen |= {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_warmup_of_hard_negatives_switches_the_objective(tokenizer, tmp_path):
    model = make_model(tokenizer, loss_type="hardnce")
    trainer = make_trainer(tmp_path, tokenizer, model=model, hard_negative_warmup_epochs=1)
    used = []
    chosen = trainer.current_loss_type
    trainer.current_loss_type = lambda: used.append(chosen()) or used[-1]
    trainer.train()
    assert used == ["nce"] * 15 + ["hardnce"] * 15
    with pytest.raises(ValueError, match="hard_negative_warmup_epochs=1 is for hardnce.*loss_type is 'nce'"):
        make_trainer(tmp_path, tokenizer, hard_negative_warmup_epochs=1)


def test_frozen_tower_does_not_move_and_the_rest_does(tokenizer, tiny_resnet, tmp_path):
    model = make_model(tokenizer, vision=tiny_resnet)
    before = weights(model)
    processor = VSEProcessor(CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16), tokenizer)
    options = {"train": make_pairs(12, size=16), "model": model, "processor": processor}
    make_trainer(tmp_path, tokenizer, **options, freeze_image_tower=True, num_train_epochs=1).train()
    after = weights(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and not any(name.startswith("vision_model.") for name in moved)
    assert {"visual_projection.weight", "text_model.embedding.weight"} <= moved

    make_trainer(tmp_path, tokenizer, **options, freeze_batchnorm=True, num_train_epochs=1).train()
    final = weights(model)
    moved = {name for name in final if name.startswith("vision_model.") and not torch.equal(final[name], after[name])}
    assert any("convolution" in name for name in moved)
    assert not any("normalization" in name for name in moved)


def test_towers_have_their_own_learning_rate(tokenizer, tmp_path):
    trainer = make_trainer(tmp_path, tokenizer, text_tower_learning_rate=3e-5, weight_decay=0.1)
    optimizer = trainer.create_optimizer()
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(trainer.model.parameters()))
    for name, parameter in trainer.model.named_parameters():
        assert rates[id(parameter)] == (3e-5 if name.startswith("text_model.") else 1e-2), name


@pytest.mark.parametrize("start", [-math.log(0.01), MAX_LOGIT_SCALE])
def test_learned_temperature_moves_from_where_it_starts_and_stays_within_its_limit(start, tokenizer, tmp_path):
    model = make_model(tokenizer, loss_type="clip", temperature=math.exp(-start))
    before = model.logit_scale.item()
    seen = []
    trainer = make_trainer(tmp_path, tokenizer, model=model, num_train_epochs=1)
    trainer.add_callback(Watch(lambda: seen.append(model.logit_scale.item())))
    trainer.train()
    assert before == pytest.approx(start) and len(set(seen)) > 5
    assert max(seen) <= MAX_LOGIT_SCALE


class Watch(TrainerCallback):
    """Calls a function after every step."""

    def __init__(self, look):
        self.look = look

    def on_step_end(self, args, state, control, **kwargs):
        self.look()


def test_a_temperature_that_grows_beyond_its_limit_is_brought_back(tokenizer, tmp_path):
    model = make_model(tokenizer, loss_type="siglip")
    trainer = make_trainer(tmp_path, tokenizer, model=model, num_train_epochs=1, max_steps=1)
    with torch.no_grad():
        model.logit_scale.fill_(20.0)
    trainer.train()
    assert model.logit_scale.item() == MAX_LOGIT_SCALE
    assert not {"logit_scale", "logit_bias"} & set(trainer.get_decay_parameter_names(model))


def test_own_learning_rate_follows_the_schedule(tokenizer, tmp_path):
    options = {"text_tower_learning_rate": 1e-3, "lr_scheduler_type": "linear", "num_train_epochs": 1}
    trainer = make_trainer(tmp_path, tokenizer, **options)
    trainer.train()
    assert all(group["lr"] == 0 for group in trainer.optimizer.param_groups)
    assert sorted({group["initial_lr"] for group in trainer.optimizer.param_groups}) == [1e-3, 1e-2]


def test_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tokenizer, tmp_path):
    options = {
        "num_train_epochs": 3, "save_strategy": "steps", "save_steps": 7, "save_total_limit": 9,
        "lr_scheduler_type": "cosine", "word_dropout": 0.3,
    }  # fmt: skip
    whole = make_trainer(tmp_path / "whole", tokenizer, **options)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", tokenizer, **options)
    checkpoint = tmp_path / "whole" / "checkpoint-21"
    assert whole.state.max_steps == 45 and 21 % 15 != 0  # in the middle of an epoch
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == 45
    for name, tensor in weights(whole.model).items():
        assert torch.equal(tensor, weights(resumed.model)[name]), name


def test_collapse_raises_the_alarm_once(tokenizer, tmp_path, caplog):
    model = make_model(tokenizer, loss_type="hardnce")
    with torch.no_grad():  # every image and every sentence in one place, and no gradient to leave it
        model.visual_projection.weight.zero_()
        model.visual_projection.bias.fill_(1.0)
        model.text_model.embedding.weight.zero_()
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(tmp_path, tokenizer, model=model, collapse_patience=3, learning_rate=0.0)
        trainer.train()
    alarms = [record.getMessage() for record in caplog.records if "has collapsed" in record.getMessage()]
    assert len(alarms) == 1
    assert alarms[0].startswith("step 3: the model has collapsed: mean cosine 1.000 between images and")
    assert "hard_negative_warmup_epochs=1" in alarms[0]


def alarms(alarm: CollapseAlarm, lines: list[float], caplog) -> list[str]:
    """What is said where these losses are logged, one every ten steps."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for line, loss in enumerate(lines, start=1):
            state = SimpleNamespace(is_world_process_zero=True, global_step=10 * line)
            alarm.on_log(None, state, None, {"loss": loss})
    return [record.getMessage() for record in caplog.records]


SCATTERED = torch.nn.functional.normalize(torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0)), dim=-1)


@pytest.mark.parametrize(
    ("loss_type", "indifferent"),
    [("hardnce", 2 * 0.2 / 0.1), ("hinge_max", 8 * 2 * 0.2), ("nce", 2 * math.log(8)), ("clip", math.log(8))],
)
def test_a_model_whose_loss_rests_where_nothing_is_told_apart_raises_the_alarm_once(loss_type, indifferent, caplog):
    def watching(texts: torch.Tensor = SCATTERED[1]) -> CollapseAlarm:
        alarm = CollapseAlarm(5)
        alarm.observe(SCATTERED[0], texts, 8, loss_type=loss_type, temperature=0.1, margin=0.2, logit_bias=0.0)
        return alarm

    stuck = alarms(watching(), [indifferent * (1 + 0.01 * (-1) ** step) for step in range(60)], caplog)
    assert len(stuck) == 1 and "step 210: the model has not learned for 200 steps: the loss" in stuck[0]
    assert f"the loss is {1.01 * indifferent:.3g} (with equal similarities it is {indifferent:.3g})" in stuck[0]
    assert ("hard_negative_warmup_epochs=1" in stuck[0]) == OBJECTIVES[loss_type].may_collapse
    # slow to leave it, and learning; then one that gets lost on the way
    healthy = [indifferent] * 15 + [indifferent * (0.97 - 0.01 * step) for step in range(40)]
    assert alarms(watching(), healthy, caplog) == []
    assert len(alarms(watching(), healthy + [indifferent] * 25, caplog)) == 1
    # it retrieves, though the hardest negatives are as near as the pairs are
    assert alarms(watching(SCATTERED[0]), [indifferent] * 60, caplog) == []


@pytest.mark.parametrize(("texts_spread", "sounds"), [(0.03, True), (1.0, False)])
def test_a_collapse_is_told_though_one_modality_is_behind(texts_spread, sounds, caplog):
    """`hardnce` on the built-in scenes after an epoch of `nce`: cosine 0.975 between images and 0.998 between texts,
    positives on the way out by a hundredth of the margin, and recall stays below a sixth of that of `nce`."""
    generator = torch.Generator().manual_seed(0)
    base = torch.nn.functional.normalize(torch.randn(64, generator=generator), dim=0)
    noise = torch.randn(2, 96, 64, generator=generator) / 8
    spreads = torch.tensor([0.16, texts_spread])[:, None, None]
    sample = torch.nn.functional.normalize(base + spreads * noise, dim=2)
    cosines = [mean_cosine(each.mean(dim=0), len(each)).item() for each in sample]
    assert cosines[0] == pytest.approx(0.975, abs=0.005)
    alarm = CollapseAlarm(5)
    alarm.observe(*sample, 96, loss_type="hardnce", temperature=0.1, margin=0.2)
    said = alarms(alarm, [4.02] * 5, caplog)
    assert len(said) == sounds and all("the model has collapsed: mean cosine 0.97" in each for each in said)
    assert remedy(OBJECTIVES["hardnce"], 1.0).startswith(
        "Give more than hard_negative_warmup_epochs=1, or loss_type nce"
    )


@pytest.mark.parametrize(("gap", "known"), [(2.0, True), (0.0, True), (-0.1, False)])
def test_a_gap_that_leaves_out_equal_similarities_gives_no_loss_to_compare_with(gap, known, caplog):
    found = indifferent_loss(8, [7] * 8, loss_type="nce", temperature=0.1, false_negative_gap=gap)
    assert found == (pytest.approx(2 * math.log(8)) if known else None)
    alarm = CollapseAlarm(5)
    alarm.observe(*SCATTERED, 8, loss_type="nce", temperature=0.1, false_negative_gap=gap)
    assert len(alarms(alarm, [2 * math.log(8)] * 30, caplog)) == known


def test_separation_counts_standard_deviations():
    images, texts = SCATTERED
    others = [(images[i] @ texts[j]).item() for i in range(8) for j in range(8) if i != j]
    own = sum((images[i] @ texts[i]).item() for i in range(8)) / 8
    expected = (own - sum(others) / 56) / torch.tensor(others).std().item()
    different = ~torch.eye(8, dtype=torch.bool)
    assert separation(images, texts, different) == pytest.approx(expected, rel=1e-4) and expected < 0.7
    assert abs(separation(images[:1].expand(4, 4), texts[:1].expand(4, 4), different[:4, :4])) < 0.7  # all alike
    chosen = [(0, 1), (3, 2), (5, 7)]
    negatives = torch.zeros(8, 8, dtype=torch.bool)
    negatives[tuple(zip(*chosen, strict=True))] = True
    others = torch.stack([images[i] @ texts[j] for i, j in chosen])
    assert separation(images, texts, negatives) == pytest.approx(((own - others.mean()) / others.std()).item())


def test_loss_that_the_alarm_compares_with_is_the_dense_one_of_equal_similarities():
    alike = torch.ones(6, 1)
    settings = {"temperature": 0.07, "margin": 0.3, "logit_bias": 0.0}
    for loss_type in OBJECTIVES:
        found = indifferent_loss(6, [5] * 6, loss_type=loss_type, **settings)
        if loss_type == "siglip":
            assert found is None
        else:
            assert found == pytest.approx(contrastive_loss(alike, alike, loss_type=loss_type, **settings).item())


@pytest.mark.parametrize("loss_type", [name for name in OBJECTIVES if name != "siglip"])
@pytest.mark.parametrize("equal", ["ten captions for half", "two captions for all", "one caption for half"])
def test_the_alarm_counts_true_negatives_alone(loss_type, equal, caplog):
    """Loss and scores of a model that tells nothing apart, against the dense loss with the same masks."""
    rows = torch.arange(64)
    ten, two, one = (
        torch.where(rows % 2 == 0, rows // 2 % 10, 100 + rows),
        rows % 2,
        torch.where(rows < 32, -1, rows),
    )
    ids = {"ten captions for half": ten, "two captions for all": two, "one caption for half": one}[equal]
    options = {"loss_type": loss_type, "temperature": 0.1, "margin": 0.2, "logit_bias": 0.0}
    alike = torch.eye(8)[:1].expand(64, 8)
    expected = contrastive_loss(alike, alike, text_ids=ids, **options).item()
    plain = contrastive_loss(alike, alike, **options).item()
    assert expected <= plain and (loss_type != "hinge_sum" or expected < 0.99 * plain), "the masks matter"
    alarm = CollapseAlarm(5)
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.nn.functional.normalize(torch.randn(2, 64, 16, generator=generator), dim=-1)
    alarm.observe(images, texts, 64, text_ids=ids, **options)
    [said] = alarms(alarm, [expected] * 40, caplog)
    assert (
        f"has not learned for 200 steps: the loss is {expected:.3g} (with equal similarities it is {expected:.3g})"
        in said
    )
    alarm.observe(alike, alike, 64, text_ids=ids, **options)
    [said] = alarms(alarm, [expected] * 5, caplog)
    assert "has collapsed: mean cosine 1.000 between images and 1.000 between texts" in said
    # each sentence in its place, the same for equal ones, and images in theirs: nothing to say, whatever the loss
    texts = torch.nn.functional.normalize(torch.randn(64, 16, generator=generator), dim=1)[
        ids.unique(return_inverse=True)[1]
    ]
    alarm = CollapseAlarm(5)
    alarm.observe(texts, texts, 64, text_ids=ids, **options)
    assert alarms(alarm, [expected] * 60, caplog) == []
    alarm.observe(alike, alike, 64, text_ids=torch.zeros(64, dtype=torch.int64), **options)
    assert alarms(alarm, [0.0] * 60, caplog) == [], "there are no negatives"


def test_the_alarm_of_a_run_knows_equal_captions(tokenizer, tmp_path, caplog):
    """Half of the images share ten captions; a model that tells nothing apart has the loss that the alarm names."""
    data = make_feature_pairs(64, captions=1)
    shared = [
        [f"red {WORDS[row // 2 % 10]}"] if row % 2 else [f"{' '.join(WORDS[: 1 + row % 9])} {row}"]
        for row in range(64)
    ]
    data = data.remove_columns("captions").add_column("captions", shared)
    model = make_model(tokenizer, loss_type="hinge_sum")
    with torch.no_grad():
        model.visual_projection.weight.zero_()
        model.visual_projection.bias.fill_(1.0)
        model.text_model.embedding.weight.zero_()
    options = {"collapse_patience": 2, "learning_rate": 0.0, "max_steps": 2, "per_device_train_batch_size": 64}
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(tmp_path, tokenizer, data, model, **options)
        trainer.train()
    [loss] = {round(each, 2) for each in losses(trainer)}
    counts = Counter(text for [text] in shared)
    negatives = sum(count * (64 - count) for count in counts.values())
    assert loss == pytest.approx(2 * 0.2 * negatives, rel=1e-3) and loss < 0.99 * 2 * 0.2 * 64 * 63
    assert f"the loss is {loss:.3g} (with equal similarities it is {loss:.3g})" in caplog.text


@pytest.mark.parametrize("warmup", [0, 1])
def test_the_alarm_speaks_of_the_objective_of_the_moment(warmup, tokenizer, tmp_path, caplog):
    """During the warm-up of hard negatives it quoted the loss of the objective to come."""
    model = make_model(tokenizer, loss_type="hardnce")
    with torch.no_grad():
        for parameter in (model.visual_projection.weight, model.text_model.embedding.weight):
            parameter.zero_()
        model.visual_projection.bias.fill_(1.0)
    options = {"collapse_patience": 3, "learning_rate": 0.0, "num_train_epochs": 1}
    with caplog.at_level(logging.WARNING):
        make_trainer(tmp_path, tokenizer, model=model, hard_negative_warmup_epochs=warmup, **options).train()
    (alarm,) = [record.getMessage() for record in caplog.records if "has collapsed" in record.getMessage()]
    indifferent = 2 * math.log(8) if warmup else 2 * 0.2 / 0.1
    assert f"(with equal similarities it is {indifferent:.3g})" in alarm


def test_a_batch_that_is_not_finite_does_not_end_training(tokenizer, tmp_path, caplog):
    """A scaler of half precision skips its step, and training goes on."""
    trainer = make_trainer(tmp_path, tokenizer, diagnostics_steps=1, max_steps=2, learning_rate=0.0)
    contrast = trainer.contrast
    trainer.contrast = lambda foils, ids, soft, images, *rest: contrast(foils, ids, soft, images * math.nan, *rest)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 2
    assert "embeddings of this batch are not finite" in caplog.text


def test_several_gpus_without_a_launcher_are_one_gpu_and_a_remark(tokenizer, tmp_path, caplog):
    trainer = make_trainer(tmp_path, tokenizer)
    trainer.args._n_gpu = 2  # as upstream counts them where nothing was launched
    with caplog.at_level(logging.WARNING):
        assert trainer.args.n_gpu == 1 and trainer.args.train_batch_size == 8
        assert trainer._wrap_model(trainer.model) is trainer.model
    assert "this process trains on one of 2 GPUs; to use all: accelerate launch --num_processes 2" in caplog.text


def test_diagnostics_stand_beside_the_loss_at_their_interval_and_change_nothing(tokenizer, tmp_path):
    every = {"diagnostics_steps": 3, "num_train_epochs": 1, "max_steps": 8}
    trainer = make_trainer(tmp_path / "on", tokenizer, **every)
    trainer.train()
    logged = [entry["step"] for entry in trainer.state.log_history if "batch_alignment" in entry]
    assert logged == [3, 6]
    quiet = make_trainer(tmp_path / "off", tokenizer, **every | {"diagnostics_steps": 0})
    quiet.train()
    assert not any("batch_alignment" in entry for entry in quiet.state.log_history)
    assert losses(trainer) == losses(quiet)


def test_diagnostics_are_those_of_the_latest_batch():
    images, texts = torch.nn.functional.normalize(torch.randn(2, 6, 4), dim=-1)
    diagnostics = BatchDiagnostics(2)
    diagnostics.observe(texts, images)
    diagnostics.observe(images, texts)
    assert diagnostics.at(1) == {}
    found = diagnostics.at(2)
    assert found["batch_alignment"] == pytest.approx((images - texts).square().sum(dim=1).mean().item(), rel=1e-5)
    assert found["batch_effective_rank_image"] != pytest.approx(found["batch_effective_rank_text"])
    assert diagnostics.at(3) == {}


def test_evaluation_is_one_line_beside_the_progress_bar(tokenizer, tmp_path, capsys):
    data = make_feature_pairs(24)
    trainer = make_trainer(tmp_path, tokenizer, data, eval_dataset=data, eval_strategy="epoch", disable_tqdm=False)
    trainer.train()
    lines = [line for line in capsys.readouterr().out.splitlines() if "image -> text" in line]
    assert len(lines) == 2 and lines[1].startswith("epoch 2 ")
    measured = [entry["eval_rsum"] for entry in trainer.state.log_history if "eval_rsum" in entry]
    assert lines[1].endswith(f"{measured[1]:.1f}")


def test_parameters_that_the_loss_does_not_reach_are_found(tokenizer):
    tiny = {"hidden_size": DIM, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = VSEModel(
        VSEConfig(
            vision_config={"model_type": "vse_features", "hidden_size": DIM},
            text_config={"model_type": "bert", "vocab_size": len(tokenizer), "max_position_embeddings": 64} | tiny,
            text_pooling="mean",
            projection_dim=DIM,
        )
    )
    batch = {"image_features": torch.randn(3, DIM), "input_ids": torch.ones(3, 4, dtype=torch.long)}
    assert unused_parameters(model, batch) == ["text_model.pooler.dense.weight", "text_model.pooler.dense.bias"]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_mean_cosine_is_that_of_all_different_pairs():
    embeds = torch.nn.functional.normalize(torch.randn(9, 5), dim=1)
    cosines = (embeds @ embeds.T)[~torch.eye(9, dtype=torch.bool)]
    torch.testing.assert_close(mean_cosine(embeds.mean(dim=0), len(embeds)), cosines.mean())


def test_stream_is_trained_on(tokenizer, tmp_path):
    stream = make_feature_pairs(24).to_iterable_dataset()
    trainer = make_trainer(tmp_path, tokenizer, stream, max_steps=12)
    trainer.train()
    assert trainer.state.global_step == 12 and losses(trainer)[-1] < losses(trainer)[0]


@pytest.mark.parametrize(
    "options",
    [
        {"dataloader_num_workers": 1},
        {"bf16": True},
        pytest.param({"torch_compile_backend": "aot_eager"}, marks=slow),
    ],
)
def test_workers_and_bf16_and_compile_train(options, tokenizer, tmp_path):
    plain, trainer = (make_trainer(tmp_path, tokenizer, max_steps=3, **each) for each in ({}, options))
    plain.train()
    trainer.train()
    assert losses(trainer) == pytest.approx(losses(plain), rel=0.05 if "bf16" in options else 1e-4)


def test_too_many_broken_images_stop_the_run(tokenizer, tiny_resnet, tmp_path):
    data = make_pairs(40, size=16)
    rows = [row | {"image": {"bytes": b"x", "path": None}} if i % 2 else row for i, row in enumerate(data.to_list())]
    damaged = type(data).from_list(rows, features=data.features)
    processor = VSEProcessor(CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16), tokenizer)
    trainer = make_trainer(tmp_path, tokenizer, damaged, make_model(tokenizer, vision=tiny_resnet), processor)
    with pytest.raises(ValueError, match="images are broken .* repair the files or raise max_broken_share"):
        trainer.train()


def test_bad_arguments_name_the_value(tmp_path):
    with pytest.raises(ValueError, match="word_dropout is a number from 0 to 1, got 3"):
        arguments(tmp_path, word_dropout=3)
    with pytest.raises(ValueError, match="loss_type 'nec' is unknown"):
        arguments(tmp_path, hard_negative_warmup_loss="nec")


def test_step_decay_follows_the_epoch_also_when_resumed(tokenizer, tmp_path):
    rates = {}
    options = {"lr_decay_epochs": 2, "num_train_epochs": 5, "learning_rate": 1e-2, "save_strategy": "epoch"}
    for name, checkpoint in (("whole", None), ("resumed", str(tmp_path / "whole" / "checkpoint-45"))):
        trainer = make_trainer(tmp_path / name, tokenizer, save_total_limit=None, **options)
        trainer.train(resume_from_checkpoint=checkpoint)
        assert trainer.state.global_step == 75
        logged = [entry for entry in trainer.state.log_history if "learning_rate" in entry]
        rates[name] = {entry["step"]: entry["learning_rate"] for entry in logged}
    of_epoch = [rates["whole"][15 * epoch + 7] for epoch in range(5)]
    assert of_epoch == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4])
    assert rates["resumed"] == rates["whole"]


def test_step_decay_of_a_part_of_an_epoch_is_that_of_a_resumed_run_too(tokenizer, tmp_path):
    options = {"lr_decay_epochs": 0.6, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 4}
    options |= {"save_total_limit": None}
    rates = {}
    for name, checkpoint in (("whole", None), ("resumed", str(tmp_path / "whole" / "checkpoint-12"))):  # 0.8 epochs
        trainer, used = make_trainer(tmp_path / name, tokenizer, **options), {}
        look = Watch(
            lambda of=trainer, used=used: used.update({of.state.global_step: of.optimizer.param_groups[0]["lr"]})
        )
        trainer.add_callback(look)
        trainer.train(resume_from_checkpoint=checkpoint)
        rates[name] = used
    expected = {9: 1e-2, 10: 1e-3, 18: 1e-3, 19: 1e-4, 27: 1e-4, 28: 1e-5}
    assert {step: rates["whole"][step] for step in expected} == pytest.approx(expected)
    assert rates["resumed"] == {step: rate for step, rate in rates["whole"].items() if step > 12}


def test_stream_resumed_after_its_first_pass_ends_with_the_weights_of_an_uninterrupted_one(tokenizer, tmp_path):
    stream = make_feature_pairs(24).to_iterable_dataset()  # three batches a pass
    options = {"max_steps": 10, "save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
    whole = make_trainer(tmp_path / "whole", tokenizer, stream, **options)
    whole.train()
    assert whole.state.epoch > 3
    for steps in (2, 6, 8):  # in the first pass, at the end of the second, in the third
        resumed = make_trainer(tmp_path / "resumed", tokenizer, stream, **options | {"save_strategy": "no"})
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{steps}"))
        assert losses(resumed)[steps:] == losses(whole)[steps:], steps
        for name, tensor in weights(whole.model).items():
            assert torch.equal(tensor, weights(resumed.model)[name]), (steps, name)


def test_stream_of_shards_goes_on_where_each_worker_was(tokenizer, tmp_path):
    """In the middle of a pass of two workers, and in the next one, of which one of them gave no batch yet."""
    stream = make_feature_pairs(48).to_iterable_dataset(num_shards=6)
    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
    options |= {"dataloader_num_workers": 2}
    whole = make_trainer(tmp_path / "whole", tokenizer, stream, **options)
    whole.train()
    for steps in (3, 7):
        folder = tmp_path / "whole" / f"checkpoint-{steps}"
        assert (folder / "stream-0.json").is_file()
        resumed = make_trainer(tmp_path / "resumed", tokenizer, stream, **options | {"save_strategy": "no"})
        resumed.train(resume_from_checkpoint=str(folder))
        assert losses(resumed)[steps:] == losses(whole)[steps:], steps
        assert resumed.stream.states == whole.stream.states and len(resumed.stream.batches.states) == 2


def test_workers_of_a_stream_draw_each_their_own(monkeypatch):
    pairs = StreamedPairs(make_feature_pairs(12).to_iterable_dataset(num_shards=2))
    draws = {}
    for number in range(2):
        worker = SimpleNamespace(id=number, num_workers=2, dataset=pairs, seed=0)
        monkeypatch.setattr("hf_vse.data.streams.get_worker_info", lambda worker=worker: worker)
        draws[number] = [row["draw"] for row in pairs][:6]
    assert not set(draws[0]) & set(draws[1])


def test_optimizer_of_one_process_has_the_parameters_of_several(tokenizer, tmp_path):
    tiny = {"hidden_size": DIM, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = {"model_type": "bert", "vocab_size": len(tokenizer), "max_position_embeddings": 64} | tiny
    vision = {"model_type": "vse_features", "hidden_size": DIM}
    config = VSEConfig(vision_config=vision, text_config=text, text_pooling="mean", projection_dim=DIM)
    trainer = make_trainer(tmp_path, tokenizer, model=VSEModel(config))
    trainer.create_optimizer()
    trained = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    of_loss = {id(each) for name, each in trainer.model.named_parameters() if not name.startswith("text_model.pooler")}
    assert trained == of_loss


def test_parameters_are_looked_at_where_the_model_is(tokenizer, tmp_path, monkeypatch):
    """FSDP leaves it on the CPU until training begins, while batches go to the GPU."""

    def elsewhere(self, inputs):
        raise RuntimeError("Expected all tensors to be on the same device")

    monkeypatch.setattr(VSETrainer, "_prepare_inputs", elsewhere)
    make_trainer(tmp_path, tokenizer)


@slow
def test_compiled_training_with_the_kernels_and_tf32(tokenizer, tmp_path, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.backends, "fp32_precision", "tf32")  # what --tf32 and --torch_compile set on a GPU
    options = {"loss_execution": "fused", "max_steps": 3}
    ways = ({}, {"torch_compile_backend": "aot_eager"})
    trainers = [make_trainer(tmp_path, tokenizer, **options | way) for way in ways]
    try:
        for trainer in trainers:
            trainer.train()
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none"  # compilation sets it
    assert losses(trainers[0]) == pytest.approx(losses(trainers[1]), rel=1e-3)


def test_first_pairs_that_cannot_be_read_stop_nothing(tokenizer):
    def collate(items):
        if items[0]["image_id"] < 16:
            raise BrokenImageError("none of the images of a batch can be read")
        return items

    assert [item["image_id"] for item in first_batch(PairDataset(make_feature_pairs(20)), collate)] == [16, 17, 18, 19]
    with pytest.raises(BrokenImageError, match="none of the training images can be read"):
        first_batch(PairDataset(make_feature_pairs(9)), collate)


def test_words_at_the_end_of_long_captions_are_learned_and_it_is_said(tokenizer, tmp_path, caplog):
    """A word that only the last sentence has; without pieces, no step would see it."""
    short = copy.deepcopy(tokenizer)
    short.model_max_length = 6
    words = [word for word in short.get_vocab() if word.isalpha()]
    last = words.pop()
    text = f"{' '.join(words[:4]).title()}. {' '.join(words[4:8]).title()}. {last.title()} {words[8]}."
    data = make_feature_pairs(16, captions=2).map(lambda row: {"captions": ["".join(row["captions"][0][:9]), text]})
    processor = VSEProcessor(tokenizer=short)
    model = make_model(short)
    before = weights(model)["text_model.embedding.weight"]
    report_long_captions.cache_clear()
    report_cut.cache_clear()
    with caplog.at_level(logging.INFO):
        trainer = make_trainer(tmp_path, short, data, model, processor, eval_dataset=data, num_train_epochs=4)
        trainer.train()
        trainer.evaluate()
    said = [record.getMessage() for record in caplog.records]
    assert [each for each in said if "longer than 6 tokens" in each][0].startswith("16 of 32 captions are longer than")
    assert "the text tower reads 6 tokens of a sentence; longer ones are cut" in said
    moved = (weights(model)["text_model.embedding.weight"] != before).any(dim=1)
    assert moved[short.convert_tokens_to_ids(last)] and not moved[short.pad_token_id]
    encoder = VSEEncoder(model, processor)
    encode_texts(encoder, [text, text, "one"])
    assert encoder.facts()["texts_cut"] == 1 and encoder.facts()["max_text_length"] == 6
    cut = short.decode(short(text, truncation=True)["input_ids"], skip_special_tokens=True)
    torch.testing.assert_close(*encode_texts(encoder, [text, cut]))
