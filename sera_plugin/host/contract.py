"""What ``host/`` uses of its hosts without their promise: a table of names, and what each is for.

The tests marked ``contract`` hold it: every name is still there, every such name that ``host/``
uses is in the table, and nothing else is. They run alone when a host's version is raised.
"""

from __future__ import annotations

from dataclasses import dataclass

READ = {
    "axolotl": "0.19.0",
    "trl": "1.9.0",
    "transformers": "5.16.1",
    "accelerate": "1.13.0",
    "bitsandbytes": "0.50.2",
}
"""The versions in which the names below were read."""


@dataclass(frozen=True)
class Touch:
    """A name of a host that may change without notice.

    Attributes:
        symbol: where it is: module, class and name.
        why: what it is used for.
        breaks: what goes wrong here when it changes.
        needs: the package without which the host doesn't have it; it is looked for only with it.
    """

    symbol: str
    why: str
    breaks: str
    needs: str | None = None

    @property
    def package(self) -> str:
        return self.symbol.partition(".")[0]

    @property
    def version(self) -> str:
        """The version of the package that was read."""
        return READ[self.package]

    @property
    def name(self) -> str:
        return self.symbol.rpartition(".")[2]

    def __str__(self) -> str:
        return (
            f"{self.symbol} is not what it was in {self.package} {self.version}; used to "
            f"{self.why}, so {self.breaks}"
        )


_TRAINER = "transformers.Trainer."
_DPO = "trl.DPOTrainer."
_PAGED = "transformers.generation.continuous_batching."
_MANAGER = f"{_PAGED}continuous_api.ContinuousBatchingManager."
_VLLM = "trl.generation.vllm_generation."

# fmt: off
TOUCHES = (
    # the training loop
    Touch(f"{_TRAINER}set_initial_training_values", "give the loop rounds of unequal length",
          "the run has another number of updates than its schedule"),
    Touch(f"{_TRAINER}get_total_train_batch_size",
          "fill a place of what set_initial_training_values returns",
          "the run logs another batch size"),
    Touch(f"{_TRAINER}_init_training_state", "resume at the schedule's round and update",
          "a resumed run skips or repeats batches"),
    Touch(f"{_TRAINER}_load_from_checkpoint", "load an adapter in the type that it is trained in",
          "a resumed QLoRA run goes on in float32"),
    Touch(f"{_TRAINER}_prepare_for_training",
          "open the run when all models are prepared and a checkpoint is loaded",
          "the reference is scored with weights that are not final"),
    Touch(f"{_TRAINER}_run_epoch", "give each epoch the round's own loader and length",
          "every round trains on the first round's pairs"),
    Touch(f"{_TRAINER}train", "walk all objects again when training has ended, in whatever way",
          "a process that goes on after a failed run keeps what the run left"),
    Touch(f"{_TRAINER}_finalize_training", "close the run after its last round",
          "nothing is published and the garbage collector stays frozen"),
    Touch(f"{_TRAINER}training_step", "compute micro-batches of an update in one pass",
          "every micro-batch is a pass of its own, or an update's gradient is another one"),
    Touch(f"{_TRAINER}_get_dataloader", "make a round's loader as the host makes its own",
          "rounds have no loader, or one that the ranks cut differently"),
    Touch(f"{_TRAINER}_get_train_sampler", "keep a round's pairs in the order of the review",
          "pairs are shuffled once more"),
    Touch(f"{_TRAINER}_train_batch_size", "plan batches as the host cuts them",
          "the schedule counts batches of another size"),
    Touch(f"{_TRAINER}_save_checkpoint",
          "write what a resumed run needs before the host's checkpoint, and publish after it",
          "a resumed run finds no pairs for its round"),
    Touch(f"{_TRAINER}_prepare_inputs", "move a batch to the device for a loss outside training",
          "loss_of fails on a GPU"),
    Touch(f"{_TRAINER}is_in_train", "tell TRL's constructor from its evaluate",
          "reference log-probs are asked for before the models are prepared"),
    Touch(f"{_TRAINER}callback_handler",
          "show callbacks the round's loader, and keep a review's numbers from being printed",
          "callbacks see the first loader for ever, or 1,500 characters are printed in a line"),
    Touch(f"{_TRAINER}_signature_columns", "let a batch keep the keys of its rows",
          "terms of the loss and selection.source: training find no rows"),
    Touch("transformers.trainer_utils.PREFIX_CHECKPOINT_DIR",
          "name the folder of a checkpoint before the host makes it",
          "margins of training are written beside the checkpoint"),
    Touch("accelerate.Accelerator._dataloaders", "forget a round's loader when the round is over",
          "every round's pairs stay in memory"),
    # preparing pairs, models and the loss
    Touch("axolotl.core.trainers.dpo.trainer.AxolotlDPOTrainer",
          "be what Axolotl builds for rl: dpo and ipo, with rounds",
          "a run with sera trains with another trainer than one without"),
    Touch(f"{_DPO}compute_loss", "note the log-probs of batches, and put terms on the loss",
          "selection.source: training has no margins, terms have no effect"),
    Touch(f"{_DPO}create_model_card", "add rounds, reviews and terms of the loss to the model card",
          "the card names the host's loss alone"),
    Touch(f"{_DPO}_name", "name SeRA in the model card", "the card says DPO"),
    Touch(f"{_DPO}_tag_names", "tag the model with sera", "the model is tagged dpo alone"),
    Touch(f"{_DPO}_paper", "cite SeRA in the model card", "the card cites DPO"),
    Touch(f"{_DPO}_metrics", "log the numbers of terms beside the host's own",
          "refine/* and the like are missing in the log"),
    Touch("trl.DPOTrainer", "say whose averages a packed step adds to",
          "log_step is given a trainer of another kind"),
    Touch(f"{_DPO}loss_weights", "know a loss that is a sum of several",
          "a weighted loss is packed as if it were whole"),
    Touch(f"{_DPO}ld_alpha", "know a loss that weighs tokens by their place",
          "packed steps leave out ld_alpha"),
    Touch(f"{_DPO}f_divergence_type", "know a loss of another divergence",
          "packed steps take the divergence for the reverse one"),
    Touch(f"{_DPO}use_weighting", "know a loss that weighs pairs by their logits",
          "packed steps leave the weights out"),
    Touch(f"{_DPO}aux_loss_enabled", "keep the router's loss beside terms",
          "a mixture of experts trains without balancing its experts"),
    Touch(f"{_DPO}router_aux_loss_coef", "keep the router's loss beside terms",
          "a mixture of experts trains without balancing its experts"),
    Touch(f"{_DPO}label_smoothing", "make terms of the robust loss with the host's ε",
          "terms beside dpo_loss_type: robust take another ε"),
    Touch(f"{_DPO}_total_train_tokens",
          "count trained tokens, and leave their count alone in a loss outside training",
          "speeds are wrong, and num_tokens in the log counts the review's pairs too"),
    Touch(f"{_DPO}_precompute_ref_logps",
          "keep TRL from scoring the reference with models that are not prepared",
          "the reference is scored twice, and by one rank alone"),
    Touch(f"{_DPO}_set_signature_columns_if_needed", "let a batch keep the keys of its rows",
          "terms of the loss and selection.source: training find no rows"),
    Touch(f"{_DPO}_prepare_dataset", "tokenize pairs as the trainer does, without one",
          "audit and plan see other tokens than a run"),
    Touch(f"{_DPO}_tokenizer", "give _prepare_dataset the one thing that it needs of a trainer",
          "audit and plan can't tokenize"),
    Touch("trl.trainer.dpo_trainer.selective_log_softmax",
          "measure batches with the function of the loss, which Axolotl does not patch",
          "margins differ from what the loss sees"),
    Touch("trl.trainer.utils.selective_log_softmax",
          "measure batches where the loss holds no name of its own for it, from TRL 1.16 on",
          "the trainer can't be imported beside a later TRL"),
    Touch("trl.trainer.dpo_trainer", "look for the loss's own log-softmax",
          "margins differ from what the loss sees"),
    Touch("trl.trainer.utils.use_adapter", "score πref with the policy's adapter off",
          "an adapter's reference is the policy itself"),
    Touch("trl.models.utils.disable_gradient_checkpointing",
          "sample with a cache of keys and values",
          "sampling computes every prefix again"),
    Touch("trl.models.utils.add_hooks", "put ZeRO-3's hooks back after weights were whole",
          "training under ZeRO-3 goes on with empty weights"),
    Touch("trl.models.utils.remove_hooks", "keep ZeRO-3 from gathering weights that are whole",
          "sampling under ZeRO-3 gathers for every token"),
    Touch("transformers.integrations.deepspeed", "load a reward model whole beside ZeRO-3",
          "a reward model is loaded in shares that nothing gathers"),
    Touch("transformers.integrations.deepspeed.unset_hf_deepspeed_config",
          "switch ZeRO-3's way of loading off",
          "a reward model is loaded in shares that nothing gathers"),
    Touch("transformers.integrations.deepspeed._hf_deepspeed_config_weak_ref",
          "switch ZeRO-3's way of loading on again",
          "models that are loaded later are whole on every rank"),
    # what Axolotl loads
    Touch("axolotl.integrations.base.PluginManager", "read the run's validated config",
          "the trainer doesn't know the sera: block"),
    Touch("axolotl.common.datasets.load_preference_datasets",
          "load the pairs that Axolotl would load",
          "a run with sera trains on other pairs than one without"),
    Touch("axolotl.common.const.DEFAULT_DATASET_PREPARED_PATH",
          "find a prepared dataset that can't be read",
          "a damaged prepared dataset is not named"),
    Touch("axolotl.loaders.load_tokenizer", "have the run's tokenizer before its model",
          "pairs are checked with another tokenizer"),
    Touch("axolotl.loaders.ModelLoader", "load the two models of an audit as a run does",
          "an audit's margins are not those of the run"),
    Touch("axolotl.loaders.adapter.find_all_linear_names",
          "name the modules that lora_target_linear means",
          "plan counts an adapter's weights wrongly"),
    Touch("axolotl.utils.chat_templates.extract_chat_template_args",
          "find the template that wrote a dataset's prompts",
          "the quality prompt finds no place in prompts"),
    Touch("axolotl.utils.chat_templates.get_chat_template", "read a template that the config names",
          "the quality prompt finds no place in prompts"),
    Touch("axolotl.cli.config.load_cfg", "read a YAML for an audit as axolotl train does",
          "audit can't read a config"),
    Touch("axolotl.cli.config.prepare_plugins", "register plugins for a plan",
          "plan refuses the sera: block as unknown"),
    Touch("axolotl.cli.config.plugin_set_cfg", "hand the config to plugins for a plan",
          "plugins of the user's own plan without a config"),
    Touch("axolotl.utils.config.validate_config", "validate a config for GPUs that aren't here",
          "plan refuses configs that train, or the other way round"),
    Touch("axolotl.utils.config.normalize_config", "fill in what the model's own config says",
          "plan reckons with another batch or length"),
    Touch("axolotl.utils.dict.DictDefault",
          "have a config in the form that Axolotl's functions take",
          "plan can't validate a config"),
    # sampling
    Touch("transformers.GenerationMixin.init_continuous_batching", "sample with a paged cache",
          "engine: transformers_paged can't start"),
    Touch(f"{_MANAGER}add_request", "ask for an answer",
          "engine: transformers_paged gets no answers"),
    Touch(f"{_MANAGER}get_result", "read an answer",
          "engine: transformers_paged gets no answers"),
    Touch(f"{_MANAGER}logit_processor", "draw tokens by numbers that follow from the seed",
          "answers of transformers_paged don't repeat"),
    Touch(f"{_MANAGER}fatal_error", "say why answers are missing",
          "a batch that doesn't fit the memory is not cut"),
    Touch(f"{_MANAGER}batch_processor", "give the manager a cache of the values' type",
          "transformers_paged fails under mixed precision"),
    Touch(f"{_MANAGER}_create_batch_processor", "make that cache in this thread",
          "transformers_paged works on the first GPU only"),
    Touch(f"{_PAGED}cb_logits_processors.ContinuousBatchingLogitsProcessor",
          "be a processor that the manager takes",
          "answers of transformers_paged don't repeat"),
    Touch(f"{_PAGED}cb_logits_processors.ContinuousBatchingLogitsProcessor.fill_defaults",
          "fill the places of rows without a request",
          "a pass of transformers_paged fails"),
    Touch(f"{_PAGED}cb_logits_processors.ContinuousBatchingLogitsProcessor.prepare_tensor_args",
          "name each row's number before a pass",
          "answers of transformers_paged don't repeat"),
    Touch(f"{_PAGED}cb_logits_processors.ContinuousBatchingLogitsProcessorList",
          "put the draw behind temperature and top-p",
          "transformers_paged samples from another distribution"),
    Touch(f"{_PAGED}requests.RequestState.position_offset",
          "know the place of a token in its answer",
          "answers of transformers_paged don't repeat"),
    Touch(f"{_PAGED}cache.PagedAttentionCache.update", "narrow keys to the values' type",
          "transformers_paged fails under mixed precision"),
    Touch(f"{_PAGED}cache.group_layers_by_attn_type", "size the cache so that no answer is put out",
          "answers of transformers_paged are computed twice or lost"),
    Touch("transformers.generation.configuration_utils.ContinuousBatchingConfig",
          "size the cache and the passes",
          "engine: transformers_paged can't start"),
    Touch("transformers.utils.is_flash_attn_2_available", "choose the attention over blocks",
          "transformers_paged is slow on GPUs with flash attention"),
    Touch("transformers.PreTrainedConfig._attn_implementation",
          "put the model's own attention back",
          "training goes on with attention over blocks"),
    Touch("transformers.PreTrainedModel._supports_flash_attn",
          "choose flash attention for models that have it",
          "transformers_paged fails on models without it"),
    Touch("transformers.DynamicCache.layers",
          "put layers that grow in the place of layers that copy",
          "sampling copies all keys and values for every token"),
    Touch("transformers.DynamicLayer.update", "append keys and values in place",
          "answers are sampled from wrong keys"),
    Touch("transformers.DynamicLayer.lazy_initialization", "let the host set a layer up",
          "answers are sampled from wrong keys"),
    Touch("transformers.DynamicLayer.batch_repeat_interleave",
          "let go of buffers whose rows were copied",
          "memory holds two caches"),
    Touch("transformers.DynamicLayer.batch_select_indices",
          "let go of buffers whose rows were copied",
          "memory holds two caches"),
    Touch("trl.generation.vllm_generation", "start vLLM or connect to it, when a run asks for it",
          "engine: vllm can't start"),
    Touch(f"{_VLLM}VLLMGeneration", "start vLLM or connect to it",
          "engine: vllm can't start"),
    Touch(f"{_VLLM}VLLMGeneration.vllm_client", "ask the server for answers",
          "engine: vllm gets no answers in vllm_mode: server"),
    Touch(f"{_VLLM}VLLMGeneration.llm", "ask the engine in this process for answers",
          "engine: vllm gets no answers in vllm_mode: colocate"),
    Touch(f"{_VLLM}VLLMGeneration._push_param_to_vllm", "send the policy's weights",
          "vLLM samples from the base model"),
    Touch(f"{_VLLM}extract_logprobs", "read what a token's log-prob was",
          "weights that did not arrive are not noticed"),
    Touch(f"{_VLLM}LLM", "start a colocated vLLM in the policy's dtype",
          "vLLM samples from a float32 policy in bf16", needs="vllm"),
    Touch("trl.generation.vllm_client.VLLMClient.close_communicator",
          "end the connection at exit with a time limit of our own",
          "a run whose server is dead waits twice and ends with a traceback"),
    Touch("trl.distributed.DistributedBackend", "make parameters whole under ZeRO-3",
          "vLLM is sent empty weights under ZeRO-3"),
    Touch("bitsandbytes.nn.Linear4bit.support_avx512bf16_for_cpu",
          "keep 4-bit weights on a CPU in the form that has a backward pass",
          "QLoRA on a CPU is refused, or trains on wrong gradients"),
    Touch("bitsandbytes.nn.Linear4bit", "try whether a 4-bit layer passes gradients",
          "QLoRA on a CPU is refused"),
    Touch("trl.import_utils.is_vllm_available", "refuse engine: vllm where there is none",
          "a run without vLLM fails at its first review"),
)
# fmt: on
