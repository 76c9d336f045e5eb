"""Measures image-text retrieval: from embeddings to metrics, intervals, protocols, diagnostics and records.

What other rooms use:

- `metrics`: `retrieval_metrics`, `fold_metrics`, `chance_recalls`; `ranks`: `retrieval_ranks`
- `evaluator`: `evaluate_retrieval`, `embed_pairs`, `PairEmbeddings`
- `judge`: `judge`, `judge_embeddings`, `compare_judgements`; `given`: `judge_given` for files of embeddings
- `record`: the form of an evaluation, `evaluation_of`, `plain_record`, `read_evaluation`; `tables`: its tables
- `run`: `evaluate_models`, which is what `hf-vse evaluate` runs
- `hook`: `compute_retrieval_metrics` and `KeepEmbeddings` for other trainers; `environment`: versions and machine
- `diagnostics`, `composition`, `zero_shot`, `corrected`: further questions, which `evaluate_models` asks on demand
"""
