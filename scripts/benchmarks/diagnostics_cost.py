"""Cost of the training diagnostics: seconds per step with and without them.

    python scripts/benchmarks/diagnostics_cost.py [--output diagnostics_cost.json]

A step is forward, backward and Adam for the paper's model on precomputed features with batch size 128. The step is
small and fast, so the relative cost is higher than with an image network. Rounds with diagnostics every `--every`
steps and rounds without alternate; the fastest rounds are compared. If the rounds vary by more than the cost of the
diagnostics, use the time of the diagnostics measured alone.
"""

import argparse
from pathlib import Path
from statistics import median

import torch
from measuring import device, record, seconds_of

from hf_vse.evaluation.environment import environment
from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.model.losses_vse import contrastive_loss
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.training.arguments import VSETrainingArguments
from hf_vse.training.callbacks import BatchDiagnostics

BATCH, WORDS, FEATURES, VOCABULARY = 128, 14, 2048, 3000


def paper_model() -> VSEModel:
    vision = {"model_type": "vse_features", "hidden_size": FEATURES}
    text = {"model_type": "vse_gru_text", "vocab_size": VOCABULARY, "word_dim": 300, "hidden_size": 1024}
    config = VSEConfig(vision_config=vision, text_config=text, projection_dim=1024, projection_type="mlp")
    return VSEModel(config).to(device()).train()


def steps(model: VSEModel, optimizer: torch.optim.Optimizer, count: int, diagnostics: BatchDiagnostics) -> None:
    """`count` training steps with the same diagnostics calls as in the trainer."""
    diagnostics.latest = 0
    for number in range(1, count + 1):
        outputs = model(
            image_features=torch.randn(BATCH, FEATURES, device=device()),
            input_ids=torch.randint(4, VOCABULARY, (BATCH, WORDS), device=device()),
            attention_mask=torch.ones(BATCH, WORDS, dtype=torch.int64, device=device()),
        )
        diagnostics.observe(outputs.image_embeds.detach(), outputs.text_embeds.detach())
        loss = contrastive_loss(
            outputs.image_embeds, outputs.text_embeds, loss_type="nce", temperature=0.1, margin=0.0
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        diagnostics.at(number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = VSETrainingArguments.__dataclass_fields__["diagnostics_steps"].default
    parser.add_argument("--every", type=int, default=default, help=f"steps between two diagnostics [{default}]")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each kind [7]")
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    arguments = parser.parse_args()
    where = environment()
    torch.manual_seed(0)
    model = paper_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    steps(model, optimizer, 3, BatchDiagnostics(1))
    kinds = (("with", arguments.every), ("without", 0))
    for number in range(arguments.rounds):
        for kind, every in kinds if number % 2 else kinds[::-1]:
            observed = BatchDiagnostics(every)
            seconds[kind].append(
                seconds_of(lambda: steps(model, optimizer, arguments.every, observed)) / arguments.every  # noqa: B023
            )
    images, texts = torch.nn.functional.normalize(torch.randn(2, BATCH, 1024, device=device()), dim=-1)
    alone = BatchDiagnostics(1)
    alone.observe(images, texts)
    once = median(seconds_of(lambda: alone.at(alone.latest + 1)) for _ in range(20))
    step = min(seconds["without"])  # slower rounds were disturbed
    result = {
        "what": "seconds of a training step with the diagnostics of a batch every so many steps, and without",
        "batch": BATCH,
        "every": arguments.every,
        "seconds_of_a_step": {kind: [round(each, 5) for each in values] for kind, values in seconds.items()},
        "milliseconds_of_the_diagnostics": round(1000 * once, 3),
        "ratio_measured": round(min(seconds["with"]) / step, 4),
        "ratio_by_their_own_time": round(1 + once / arguments.every / step, 5),
        "environment": where,
    }
    record(result, arguments.output)


if __name__ == "__main__":
    main()
