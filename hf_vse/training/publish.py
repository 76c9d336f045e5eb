"""The part of the trainer that talks to the Hub: it publishes a model, never a checkpoint.

transformers uploads the whole output directory, with pickled arguments and the folders of other stages in it. Here
the same calls upload the same files as `push_model`, with the card of the model and the record of the training.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers import Trainer, TrainerControl
from transformers.utils import PushInProgress

from hf_vse.evaluation.environment import environment
from hf_vse.evaluation.metrics import chance_recalls
from hf_vse.evaluation.record import evaluation_of, plain_record
from hf_vse.hub.card import objective_record
from hf_vse.hub.model_files import MODEL_FILES, files_in
from hf_vse.hub.push import leave_card, push_model
from hf_vse.hub.record import METRICS
from hf_vse.training.arguments import VSETrainingArguments
from hf_vse.training.pictures import draw_pictures, failure_as_warning

OF_METRICS = ("i2t_", "t2i_", "rsum")
TOLD = ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps",
        "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "seed", "bf16", "fp16",
        "mask_same_image", "mask_equal_captions", "unique_images", "hard_negative_warmup_epochs",
        "word_dropout", "set_dropout", "captions_per_image", "positives", "batch_groups",
        "queue_size", "extra_negatives", "soft_targets", "soft_weight", "soft_temperature",
        "feature_distance")  # fmt: skip


def check_hub_strategy(args: VSETrainingArguments) -> None:
    if args.push_to_hub and args.hub_strategy not in ("end", "every_save"):
        raise ValueError(
            f"hub_strategy={str(args.hub_strategy.value)!r} would upload the pickled states of the optimizer; "
            "choose 'every_save' or 'end'"
        )


class PublishingTrainer(Trainer):
    """`push_to_hub`, the pushes while training, and `create_model_card`, for a `VSEModel`."""

    args: VSETrainingArguments
    control: TrainerControl
    push_in_progress: Any

    def record(self) -> dict[str, Any]:
        """What is known of this training, in the form of a run's `metrics.json`, see `hf_vse.evaluation.record`."""
        measured = [entry for entry in self.state.log_history if "eval_rsum" in entry]
        best = max(measured, key=lambda entry: entry["eval_rsum"], default=None)
        if not self.args.load_best_model_at_end and measured:
            best = measured[-1]
        loss_type, records = self.model.config.loss_type, {}
        if best is not None:
            metrics = {key.removeprefix("eval_"): value for key, value in best.items() if key.startswith("eval_")}
            images, captions = metrics["images"], metrics["texts"]
            records["validation"] = plain_record(
                {key: value for key, value in metrics.items() if key.startswith(OF_METRICS)},
                chance_recalls(images, captions),
                images=images,
                captions=captions,
                broken_images=metrics["broken_images"],
                split="validation",
            )
        seconds = next((e["train_runtime"] for e in reversed(self.state.log_history) if "train_runtime" in e), 0.0)
        stage = {"name": "train", "loss_type": loss_type, "seconds": seconds}
        told = self.args.to_dict()
        return evaluation_of(records, environment() | {"processes": self.accelerator.num_processes}) | {
            "loss_type": loss_type,
            **objective_record(loss_type),
            "stages": [stage | {"steps": self.state.global_step, "epochs": self.state.epoch}],
            "recipe": {key: told[key] for key in TOLD},
        }

    def create_model_card(
        self,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        dataset: str | list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes the card, and the record and curves it shows, into the output directory.

        Args:
            dataset: the name or Hub id of the training data; other arguments of transformers are not used.
        """
        if not self.is_world_process_zero():
            return
        output = Path(self.args.output_dir)
        record = self.record() | ({"dataset": dataset} if isinstance(dataset, str) else {})
        (output / METRICS).write_text(json.dumps(record, indent=1), encoding="utf-8")
        with failure_as_warning("no pictures"):
            draw_pictures(output, [{"name": "train", "log": self.state.log_history}], {}, {})
        repo_id = self.hub_model_id or self.args.hub_model_id or f"your-name/{model_name or output.resolve().name}"
        leave_card(output, repo_id, license, [tags] if isinstance(tags, str) else tags or [])

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Publishes model, processor, card, record and curves; returns the address, or a future of it.

        Args:
            kwargs: for `create_model_card`.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        self._finish_current_push()
        options: dict[str, Any] = {"commit_message": commit_message, "license": kwargs.get("license")}
        options |= {"token": token or self.args.hub_token, "revision": revision or self.args.hub_revision}
        if blocking:
            return push_model(self.args.output_dir, self.hub_model_id, **options)
        return HfApi().run_as_future(push_model, self.args.output_dir, self.hub_model_id, **options)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """After a checkpoint was written: its model becomes that of the output directory and is sent meanwhile."""
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if not self.is_world_process_zero() or self.args.hub_strategy == "end" or busy:
            return
        for name, path in files_in(Path(checkpoint_folder), MODEL_FILES).items():
            target = Path(self.args.output_dir, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        self.create_model_card()
        job = HfApi().run_as_future(
            push_model,
            self.args.output_dir,
            self.hub_model_id,
            token=self.args.hub_token,
            revision=self.args.hub_revision,
            commit_message=f"Training in progress, step {self.state.global_step}",
        )
        self.push_in_progress = PushInProgress([job])
