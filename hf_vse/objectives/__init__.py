"""How objectives are computed: in chunks, as a stream, by kernels, on several processes, and from files of a user.

What they mean stands in `hf_vse.model.losses_vse`: the row losses and `OBJECTIVES`, the table of all. For other rooms:

- `execution`: `Execution`, `choose_execution`, `execute_loss`, the loss of a training step;
- `captions`: `Positives`, what several captions of an image are to it;
- `grad_cache`: `mini_batches`, `cached_loss`, batches larger than the memory;
- `own`: `load_objective`, `is_own`, `without_folder`, row losses in a file;
- `past`, `soft_targets`: `Past`, `compared`, candidates of earlier steps; `SoftTargets`, what a teacher thinks;
- `same_modality`, `foils`: images as negatives of images, texts of texts; false captions as negatives of images;
- `exchange`: `Negatives`, `world_size`;
- `gather`, `streamed`: `gathered_contrastive_loss`, `streamed_contrastive_loss`, for training loops of one's own.
"""
