"""From a recipe to a trained model in a folder.

What the other rooms and scripts use:

- `recipe.read_recipe`, `recipe.parse_command_line`: a checked `Recipe`; `settings` collects its keys.
- `run.run_recipe`: data, stages, evaluation and pictures of a recipe; `grid.run_grid` does many.
- `trainer.VSETrainer` with `arguments.VSETrainingArguments`: training without a recipe.
- `averaging`, `interpolation`, `before_after`: fine-tuning that does no harm.
- `queue`: the embeddings of past pairs as negatives.
- `teachers`, `scores`: other models, or a file, whose scores are soft targets; `scores.write_scores` writes one.
- `trainable`, `layers`: which parameters are trained, and at what rates.
- `build`: processor and model of a recipe; `timm_towers`: image towers of timm.

`effects`, `limits` and `documented` say what a key of a recipe does, may be and means.
"""
