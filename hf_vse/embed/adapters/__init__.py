"""One `Encoder` for each kind of model. Other rooms open them with `load_encoder`, and use from here only

- `vse`: `VSEEncoder`, a model of this package and its processor, in training and evaluation
- `own_models`: `load_vse_model`, `load_vse_processor`, `check_processor`, to continue the training of such a model
- `arrays`: `read_embeddings`, `save_embeddings`, `GivenEmbeddings`: vectors in files, in the place of a model
"""
