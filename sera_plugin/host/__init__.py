"""Every touch of a private or unstable API of the host. Nothing else in the package makes one.

Read from axolotl 0.19.0, trl 1.9.0, transformers 5.16.1, accelerate 1.13.0;
``tests/test_host_contract.py`` fails when one of these symbols changes:

* ``transformers.Trainer.set_initial_training_values``, ``_init_training_state``,
  ``_prepare_for_training``, ``_run_epoch``, ``_finalize_training``, ``_get_dataloader``,
  ``_get_train_sampler``, ``_save_checkpoint``
* ``trl.DPOTrainer._prepare_dataset``, ``_precompute_ref_logps``, ``precompute_ref_logps``,
  ``_compute_loss``, ``_metrics``, ``_set_signature_columns_if_needed``, and the helpers of
  ``trl.models.utils`` and ``trl.trainer.utils`` imported below
* ``accelerate.Accelerator._dataloaders``
* ``transformers.integrations.deepspeed.unset_hf_deepspeed_config`` and the variable it clears
* ``transformers.GenerationMixin.init_continuous_batching`` and its ``ContinuousBatchingManager``:
  ``add_request``, ``get_result``, ``logit_processor``, ``fatal_error``, ``batch_processor``,
  ``_create_batch_processor``; ``ContinuousBatchingLogitsProcessorList``,
  ``RequestState.position_offset``, ``PagedAttentionCache.update``, ``group_layers_by_attn_type``
* ``transformers.DynamicCache.layers`` and ``DynamicLayer.update``
* in ``vllm``: ``trl.generation.vllm_generation.VLLMGeneration`` with its ``vllm_client``, ``llm``
  and ``_push_param_to_vllm``, ``extract_logprobs``, ``trl.distributed.DistributedBackend``
* ``axolotl.integrations.base.PluginManager.cfg``, and in ``preference_data``
  ``axolotl.common.datasets.load_preference_datasets``, ``axolotl.loaders.load_tokenizer``
"""
