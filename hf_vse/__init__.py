"""Train, evaluate, publish and search visual-semantic embeddings on the Hugging Face stack.

The public names are imported when first used, so that `import hf_vse` costs nothing.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "VSEConfig": "hf_vse.model.configuration_vse",
    "VSEFeaturesConfig": "hf_vse.model.configuration_vse",
    "VSEGRUTextConfig": "hf_vse.model.configuration_vse",
    "VSEModel": "hf_vse.hub.push",  # which gives it `push_to_hub` with the card of hf_vse
    "VSEProcessor": "hf_vse.model.processing_vse",
    "contrastive_loss": "hf_vse.model.losses_vse",
    "load_objective": "hf_vse.objectives.own",
    "gathered_contrastive_loss": "hf_vse.objectives.gather",
    "streamed_contrastive_loss": "hf_vse.objectives.streamed",
    "execute_loss": "hf_vse.objectives.execution",
    "Execution": "hf_vse.objectives.execution",
    "load_pairs": "hf_vse.data.sources",
    "VSECollator": "hf_vse.data.collator",
    "train_word_tokenizer": "hf_vse.data.tokenization",
    "retrieval_metrics": "hf_vse.evaluation.metrics",
    "evaluate_retrieval": "hf_vse.evaluation.evaluator",
    "judge": "hf_vse.evaluation.judge",
    "load_encoder": "hf_vse.embed.load",
    "relevance": "hf_vse.embed.relevance",
    "DualEncoder": "hf_vse.embed.encoder",
    "compute_retrieval_metrics": "hf_vse.evaluation.hook",
    "KeepEmbeddings": "hf_vse.evaluation.hook",
    "GalleryIndex": "hf_vse.search.gallery",
    "Encoder": "hf_vse.embed.encoder",
    "VSETrainer": "hf_vse.training.trainer",
    "VSETrainingArguments": "hf_vse.training.arguments",
    "interpolate": "hf_vse.training.interpolation",
    "read_recipe": "hf_vse.training.recipe",
    "run_recipe": "hf_vse.training.run",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'hf_vse' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
