"""Any model as two functions into one space, and vectors that are computed once.

What other rooms use:

- `encoder`: `Encoder`, the base class of every model, with `encode_images`, `encode_texts`, `query`, `dim`, `digest`
- `load`: `load_encoder`, which opens any model by its name; `model_place`, its name with absolute paths
- `run`: `encode_images`, `encode_texts`, unit vectors of many inputs; `batches`: batches of a tower
- `store`: `Store`, computed rows that are kept and found again; `features`: outputs of an image tower as a file
- `adapters`: one file for each kind of model
- `stored`, `weights`: files and weights of a model, checked before they are used; `sentences`: texts for a text tower
- `hub_correction`: scores without the advantage of hubs; `matrices`: checks of arrays of vectors
"""
