"""The names of all keys that each trainer takes, at the versions of the table.

Written by ``tests/trainer_keys.py``; names only.
"""

from __future__ import annotations

from collections.abc import Mapping

PEFT = "peft"


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


KNOWN_KEYS: Mapping[str, frozenset[str]] = {
    "transformers": _names(
        """
        accelerator_config activation_checkpointing activation_checkpointing_kwargs adam_beta1 adam_beta2
        adam_epsilon auto_find_batch_size average_tokens_across_devices batch_eval_metrics bf16
        bf16_full_eval data_seed dataloader_drop_last dataloader_in_order dataloader_multiprocessing_context
        dataloader_num_workers dataloader_persistent_workers dataloader_pin_memory
        dataloader_prefetch_factor ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb
        ddp_find_unused_parameters ddp_static_graph ddp_timeout debug deepspeed disable_tqdm do_eval
        do_predict do_train enable_jit_checkpoint eval_accumulation_steps eval_delay eval_do_concat_batches
        eval_on_start eval_steps eval_strategy eval_use_gather_object fp16 fp16_full_eval fsdp fsdp_config
        full_determinism gradient_accumulation_steps gradient_checkpointing gradient_checkpointing_kwargs
        greater_is_better hub_always_push hub_model_id hub_private_repo hub_revision hub_strategy hub_token
        ignore_data_skip include_for_metrics include_num_input_tokens_seen label_names
        label_smoothing_factor learning_rate length_column_name liger_kernel_config load_best_model_at_end
        local_rank log_level log_level_replica log_on_each_node logging_first_step logging_nan_inf_filter
        logging_steps logging_strategy lr_scheduler_kwargs lr_scheduler_type max_grad_norm max_steps
        metric_for_best_model neftune_noise_alpha num_train_epochs optim optim_args optim_target_modules
        output_dir parallelism_config per_device_eval_batch_size per_device_train_batch_size
        prediction_loss_only project push_to_hub remove_unused_columns report_to
        restore_callback_states_from_checkpoint resume_from_checkpoint run_name save_on_each_node
        save_only_model save_steps save_strategy save_total_limit seed skip_memory_metrics tf32
        torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps trackio_bucket_id
        trackio_space_id trackio_static_space_id train_sampling_strategy use_cache use_cpu use_liger_kernel
        warmup_steps weight_decay
        """
    ),
    "trl": _names(
        """
        accelerator_config activation_checkpointing activation_checkpointing_kwargs activation_offloading
        adam_beta1 adam_beta2 adam_epsilon assistant_only_loss attn_implementation auto_find_batch_size
        average_tokens_across_devices batch_eval_metrics bf16 bf16_full_eval bnb_4bit_quant_storage
        bnb_4bit_quant_type chat_template_path completion_only_loss config data_seed dataloader_drop_last
        dataloader_in_order dataloader_multiprocessing_context dataloader_num_workers
        dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor dataset_config
        dataset_kwargs dataset_name dataset_num_proc dataset_streaming dataset_test_split dataset_text_field
        dataset_train_split datasets ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb
        ddp_find_unused_parameters ddp_static_graph ddp_timeout debug deepspeed disable_tqdm do_eval
        do_predict do_train dtype enable_jit_checkpoint env eos_token eval_accumulation_steps eval_delay
        eval_do_concat_batches eval_on_start eval_packing eval_steps eval_strategy eval_use_gather_object
        fp16 fp16_full_eval fsdp fsdp_config full_determinism gradient_accumulation_steps
        gradient_checkpointing gradient_checkpointing_kwargs greater_is_better hub_always_push hub_model_id
        hub_private_repo hub_revision hub_strategy hub_token ignore_bias_buffers ignore_data_skip
        include_for_metrics include_num_input_tokens_seen label_names label_smoothing_factor learning_rate
        length_column_name liger_kernel_config load_best_model_at_end load_in_4bit load_in_8bit local_rank
        log_level log_level_replica log_on_each_node logging_first_step logging_nan_inf_filter logging_steps
        logging_strategy lora_alpha lora_dropout lora_modules_to_save lora_r lora_target_modules
        lora_target_parameters lora_task_type loss_type lr_scheduler_kwargs lr_scheduler_type max_grad_norm
        max_length max_steps metric_for_best_model model_init_kwargs model_name_or_path model_revision
        neftune_noise_alpha num_train_epochs optim optim_args optim_target_modules output_dir packing
        packing_strategy pad_to_multiple_of pad_token padding_free parallelism_config
        per_device_eval_batch_size per_device_train_batch_size prediction_loss_only project push_to_hub
        remove_unused_columns report_to restore_callback_states_from_checkpoint resume_from_checkpoint
        router_aux_loss_coef run_name save_on_each_node save_only_model save_steps save_strategy
        save_total_limit seed shuffle_dataset skip_memory_metrics streaming test_split_size tf32
        torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps trackio_bucket_id
        trackio_space_id trackio_static_space_id train_sampling_strategy truncation_mode trust_remote_code
        use_bnb_nested_quant use_cache use_cpu use_dora use_liger_kernel use_peft use_rslora warmup_steps
        weight_decay
        """
    ),
    "accelerate": _names(
        """
        command_file commands compute_environment debug deepspeed_config distributed_type downcast_bf16
        dynamo_config enable_cpu_affinity fp8_config fsdp_config gpu_ids machine_rank main_process_ip
        main_process_port main_training_function megatron_lm_config mixed_precision mpirun_config
        num_machines num_processes parallelism_config rdzv_backend same_network tpu_env tpu_name
        tpu_use_cluster tpu_use_sudo tpu_vm tpu_zone use_cpu
        """
    ),
    "peft": _names(
        """
        alora_invocation_tokens alpha_pattern arrow_config auto_mapping base_model_name_or_path beta1 beta2
        bias block_share coft corda_config deltaT ensure_weight_tying eps eva_config exclude_modules
        fan_in_fan_out feedforward_modules inference_mode init_ia3_weights init_lora_weights init_r
        init_weights kasa_config layer_replication layers_pattern layers_to_transform loftq_config
        lora_alpha lora_bias lora_dropout lora_ga_config megatron_config megatron_core mini_r miss_dropout
        module_dropout modules_to_save monteclora_config num_cayley_neumann_terms oft_block_size
        orth_reg_weight peft_type peft_version qalora_group_size r rank_pattern revision runtime_config
        target_modules target_parameters target_r task_type tfinal tinit total_step trainable_token_indices
        use_bdlora use_cayley_neumann use_dora use_qalora use_rslora velora_config
        """
    ),
    "axolotl": _names(
        """
        accelerator_config activation_offloading adam_beta1 adam_beta2 adam_beta3 adam_epsilon adam_epsilon2
        adapter added_tokens_overrides attn_implementation auto_find_batch_size auto_resume_from_checkpoints
        axolotl_config_path base_model base_model_config batch_flattening batch_size bench_dataset
        bench_split bf16 bfloat16 bnb_config_kwargs center_rewards_coefficient chat_template
        chat_template_jinja chat_template_kwargs chunked_cross_entropy chunked_cross_entropy_num_chunks
        cls_model_config comet_api_key comet_experiment_config comet_experiment_key comet_mode comet_online
        comet_project_name comet_workspace context_parallel_size cosine_constant_lr_ratio
        cosine_min_lr_ratio cpo_alpha curriculum_sampling cut_cross_entropy dataloader_drop_last
        dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor dataset_exact_deduplication
        dataset_keep_in_memory dataset_num_proc dataset_prepared_path dataset_processes dataset_shard_idx
        dataset_shard_num datasets ddp ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters
        ddp_timeout deepcompile deepspeed default_system_message dense_mixer device device_map diffusion
        dion_lr dion_momentum dion_rank_fraction dion_rank_multiple_of do_bench_eval do_causal_lm_eval
        dp_replicate_size dp_shard_size dpo_beta dpo_generate_during_eval dpo_label_smoothing dpo_loss_type
        dpo_loss_weights dpo_norm_loss dpo_padding_free dpo_use_liger_kernel dpo_use_logits_to_keep
        dpo_use_weighting dsv4_bf16_all dsv4_fp4_grouped_mode dsv4_fp8_lora_kernel dsv4_fp8_nonexpert_mode
        dsv4_shared_mlp_lora_kernel dynamic_checkpoint eaft_alpha eaft_k eager_attention
        early_stopping_patience ebft embedding_lr embedding_lr_scale embeddings_skip_upcast eot_tokens
        eval_batch_size eval_causal_lm_metrics eval_max_new_tokens eval_sample_packing eval_sequence_len
        eval_steps eval_strategy eval_table_size evals_per_epoch evaluation_strategy excess_length_strategy
        experimental_skip_move_to_device expert_backend expert_parallel_backend
        expert_parallel_fallback_on_unsupported expert_parallel_num_nvl_bytes expert_parallel_num_rdma_bytes
        expert_parallel_size expert_parallel_token_capacity experts_implementation fix_untrained_tokens
        flash_attention flash_attn_cross_entropy flash_attn_d512 flash_attn_fuse_mlp flash_attn_rms_norm
        flash_optimum flex_attention flex_attn_compile_kwargs float16 float32 fp16 fp32_norm_classes
        fp32_norms fp8 fp8_config fp8_enable_fsdp_float8_all_gather freeze_mm_modules fsdp fsdp_config
        fsdp_final_state_dict_type fsdp_version fused_attn_kernel gc_collect_steps gc_steps
        gemma4_fp8_nonexpert gemma4_hybrid_attn_impl gemma4_nf4_nonexpert generate_samples
        generation_do_sample generation_max_new_tokens generation_prompt_ratio generation_temperature
        generation_top_k generation_top_p gptq gpu_memory_limit gradient_accumulation_steps
        gradient_checkpointing gradient_checkpointing_kwargs gradio_max_new_tokens gradio_server_name
        gradio_server_port gradio_share gradio_temperature gradio_title greater_is_better grokfast_alpha
        grokfast_lamb group_by_length hatchery heads_k_stride hf_mlflow_log_artifacts hf_use_auth_token
        hub_model_id hub_revision hub_strategy image_resize_algorithm image_size include_tkps
        include_tokens_per_second is_falcon_derived_model is_llama_derived_model is_mistral_derived_model
        is_preprocess is_qwen_derived_model jagged_restart_anneal_steps jagged_restart_steps
        jagged_restart_warmup_steps kd_alpha kd_beta kd_ce_alpha kd_normalize_topk kd_online_server
        kd_online_server_base_url kd_online_timeout kd_online_topk kd_temperature kd_temperature_min
        kd_trainer kto_desirable_weight kto_undesirable_weight large_head_attention layer_offloading
        learning_rate liger_cross_entropy liger_fused_linear_cross_entropy liger_glu_activation
        liger_kernel_impl liger_layer_norm liger_rms_norm liger_rms_norm_gated liger_rope liger_swiglu
        liger_use_token_scaling lisa_layers_attribute lisa_n_layers lisa_step_interval
        llama4_linearized_experts llmcompressor lm_eval_batch_size lm_eval_model lm_eval_post_train
        lm_eval_tasks load_best_model_at_end load_in_4bit load_in_8bit local_rank logging_steps lora_alpha
        lora_alpha_pattern lora_dropout lora_embedding_kernel lora_fan_in_fan_out lora_mlp_kernel
        lora_model_dir lora_modules_to_save lora_o_kernel lora_on_cpu lora_qkv_kernel lora_r
        lora_rank_pattern lora_target_linear lora_target_modules lora_target_parameters
        loraplus_lr_embedding loraplus_lr_ratio loss_watchdog_patience loss_watchdog_threshold
        low_cpu_mem_usage lr_div_factor lr_groups lr_quadratic_warmup lr_scheduler lr_scheduler_kwargs
        max_grad_norm max_memory max_packed_sequence_len max_prompt_len max_steps mean_resizing_embeddings
        merge_lora merge_method metric_for_best_model micro_batch_size min_sample_len mlflow_experiment_name
        mlflow_run_name mlflow_tracking_uri model_quantization_config model_quantization_config_kwargs
        moe_bnb_fast moe_dequant_chunk_size moe_grouped_backend mora multipack_real_batches
        neftune_noise_alpha nemo_gym_auto_clone nemo_gym_auto_start nemo_gym_config_paths nemo_gym_datasets
        nemo_gym_dir nemo_gym_enabled nemo_gym_head_port nemo_gym_max_turns nemo_gym_model_name
        nemo_gym_multi_turn nemo_gym_run_timeout nemo_gym_server_timeout nemo_gym_verify_timeout
        noisy_embedding_alpha nonexpert_quantization num_dataset_shards_to_save num_epochs
        num_generation_samples num_labels nvfp4_merge_aware nvfp4_merge_aware_start_step optim_args
        optim_target_modules optimizer orpo_alpha otel_metrics_host otel_metrics_port output_dir
        overrides_of_model_config overrides_of_model_kwargs pad_to_multiple_of pad_to_sequence_len peft
        peft_autocast_adapter_dtype peft_ensure_weight_tying peft_init_lora_weights peft_layer_replication
        peft_layers_pattern peft_layers_to_transform peft_trainable_token_indices peft_use_dora
        peft_use_rslora ple_cpu_offload plugins pose_max_context_len pose_num_chunks pose_split_on_token_ids
        precompute_ref_log_probs preprocess_iterable pretrain_multipack_attn pretrain_multipack_buffer_size
        pretraining_dataset pretraining_sample_concatenation process_reward_model processor_kwargs
        processor_type profiler_steps profiler_steps_start push_dataset_to_hub qat qgalore_cos_threshold
        qgalore_gamma_proj qgalore_proj_bits qgalore_proj_group_size qgalore_proj_quant qgalore_proj_type
        qgalore_queue_size qgalore_rank qgalore_scale qgalore_update_proj_gap qlora_sharded_model_loading
        quantization quantize_moe_experts ray_num_workers ray_run_name recipe reinit_weights relora
        relora_cpu_offload relora_prune_method relora_prune_ratio remove_unused_columns
        resize_token_embeddings_to_32x resources_per_worker resume_from_checkpoint revision_of_model
        reward_model ring_attn_func rl rl_beta role_boundaries rope_scaling rpo_alpha s2_attention
        sage_attention sample_packing sample_packing_bin_size sample_packing_eff_est
        sample_packing_group_size sample_packing_mp_start_method sample_packing_sequentially save_compressed
        save_first_step save_only_model save_safetensors save_steps save_strategy save_total_limit
        saves_per_epoch scaling_softmax scaling_softmax_bias scaling_softmax_factor sdp_attention
        sdpa_varlen seed selective_checkpointing sequence_len sequence_parallel_degree shrink_embeddings
        shuffle_before_merging_datasets shuffle_merged_datasets simpo_gamma skip_prepare_dataset
        special_tokens spectrum_model_name spectrum_top_fraction streaming streaming_multipack_buffer_size
        strict tensor_parallel_size test_datasets tf32 tiled_mlp tiled_mlp_num_shards
        tiled_mlp_use_original_mlp tokenizer_config tokenizer_legacy tokenizer_save_jinja_files
        tokenizer_type tokenizer_use_fast tokenizer_use_mistral_common tokens torch_compile
        torch_compile_backend torch_compile_mode torch_compile_options torch_empty_cache_steps
        torchdistx_path total_num_tokens total_supervised_tokens trackio_project_name trackio_run_name
        trackio_space_id train_on_inputs trainer_cls trl trust_remote_code type_of_model unfrozen_parameters
        use_comet use_dsv4_kernels use_eaft use_glm_dsa_kernels use_kernels use_mlflow use_onebitllms
        use_otel_metrics use_pose use_ray use_scattermoe use_sonicmoe use_tensorboard use_trackio use_wandb
        val_set_size vllm wandb_entity wandb_log_model wandb_mode wandb_name wandb_project wandb_run_id
        wandb_watch warmup_ratio warmup_steps weight_decay world_size xformers_attention
        """
    ),
    "llamafactory": _names(
        """
        accelerator_config activation_checkpointing activation_checkpointing_kwargs adam_beta1 adam_beta2
        adam_epsilon adapter_folder adapter_name_or_path add_special_tokens add_tokens additional_target
        apollo_layerwise apollo_proj apollo_proj_type apollo_rank apollo_scale apollo_scale_front
        apollo_scale_type apollo_target apollo_update_interval asft_alpha audio_sampling_rate
        auto_find_batch_size average_tokens_across_devices batch_eval_metrics batch_size bf16 bf16_full_eval
        block_diag_attn buffer_size cache_dir compute_accuracy compute_dtype create_new_adapter
        crop_to_patches cutoff_len data_seed data_shared_file_system dataloader_drop_last
        dataloader_in_order dataloader_multiprocessing_context dataloader_num_workers
        dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor dataset dataset_dir
        ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph
        ddp_timeout debug deepspeed default_system device_map disable_gradient_checkpointing
        disable_shuffling disable_tqdm do_eval do_predict do_sample do_train double_quantization
        download_mode dpo_label_smoothing eaft_alpha early_stopping_steps enable_jit_checkpoint
        enable_liger_kernel enable_thinking enable_torch_profiler eval_accumulation_steps eval_dataset
        eval_delay eval_do_concat_batches eval_num_beams eval_on_each_dataset eval_on_start eval_steps
        eval_strategy eval_use_gather_object evaluation_strategy export_device export_dir
        export_hub_model_id export_legacy_format export_quantization_bit export_quantization_dataset
        export_quantization_maxlen export_quantization_nsamples export_size finetuning_type flash_attn fp16
        fp16_backend fp16_full_eval fp16_opt_level fp8 fp8_backend fp8_enable_fsdp_float8_all_gather
        freeze_extra_modules freeze_language_model freeze_multi_modal_projector freeze_trainable_layers
        freeze_trainable_modules freeze_vision_tower fsdp fsdp_config full_determinism galore_layerwise
        galore_proj_type galore_rank galore_scale galore_target galore_update_interval
        gradient_accumulation_steps gradient_checkpointing gradient_checkpointing_kwargs greater_is_better
        group_by_length half_precision_backend hf_hub_token hub_always_push hub_model_id hub_private_repo
        hub_revision hub_strategy hub_token hyper_parallel_args ignore_data_skip ignore_pad_token_for_loss
        image_do_pan_and_scan image_max_pixels image_min_pixels include_effective_tokens_per_second
        include_for_metrics include_inputs_for_metrics include_num_input_tokens_seen infer_backend
        infer_dtype init_special_tokens interleave_probs jit_mode_eval kt_expert_checkpoint_path
        kt_lora_expert_intermediate_size kt_lora_expert_num kt_use_lora_experts kt_weight_path
        kto_chosen_weight kto_rejected_weight label_names label_smoothing_factor lang ld_alpha learning_rate
        length_column_name length_penalty liger_kernel_config load_best_model_at_end local_rank log_level
        log_level_replica log_on_each_node logging_dir logging_first_step logging_nan_inf_filter
        logging_steps logging_strategy lora_alpha lora_dropout lora_rank lora_target loraplus_lr_embedding
        loraplus_lr_ratio low_cpu_mem_usage lr_scheduler_kwargs lr_scheduler_type mask_history master_addr
        master_port max_grad_norm max_length max_new_tokens max_samples max_steps media_dir
        metric_for_best_model mix_strategy mixture_of_depths model_max_length model_name_or_path
        model_revision module_dropout moe_aux_loss_coef ms_hub_token n_shot neat_packing neftune_noise_alpha
        new_special_tokens_config no_cuda num_beams num_train_epochs offload_folder oft_block_size oft_rank
        oft_target om_hub_token optim optim_args optim_target_modules output_dir overwrite_cache
        overwrite_output_dir packing parallelism_config past_index per_device_eval_batch_size
        per_device_train_batch_size pissa_convert pissa_init pissa_iter plot_loss ppo_buffer_size ppo_epochs
        ppo_score_norm ppo_target ppo_whiten_rewards prediction_loss_only pref_bco_weight pref_beta pref_ftx
        pref_loss preprocessing_batch_size preprocessing_num_workers preserve_thinking print_param_status
        profile_modules profiler_active_steps profiler_output_dir profiler_profile_memory
        profiler_record_shapes profiler_repeat profiler_wait_steps profiler_warmup_steps profiler_with_stack
        project pure_bf16 push_to_hub push_to_hub_model_id push_to_hub_organization push_to_hub_token
        quantization_bit quantization_device_map quantization_method quantization_type ray_init_kwargs
        ray_num_workers ray_scope ref_model ref_model_adapters ref_model_quantization_bit
        remove_unused_columns repetition_penalty report_to resize_vocab
        restore_callback_states_from_checkpoint resume_from_checkpoint reward_model reward_model_adapters
        reward_model_quantization_bit reward_model_type rope_scaling run_name save_dir save_on_each_node
        save_only_model save_safetensors save_steps save_strategy save_total_limit seed sglang_config
        sglang_lora_backend sglang_maxlen sglang_mem_fraction sglang_tp_size shift_attn simpo_gamma
        skip_memory_metrics skip_special_tokens split_special_tokens stage streaming swanlab_api_key
        swanlab_lark_secret swanlab_lark_webhook_url swanlab_logdir swanlab_mode swanlab_project
        swanlab_run_name swanlab_workspace task task_dir temperature template tf32 tokenized_path
        tool_format top_k top_p torch_compile torch_compile_backend torch_compile_mode
        torch_empty_cache_steps torchdynamo tpu_num_cores trackio_bucket_id trackio_space_id
        trackio_static_space_id train_from_scratch train_on_prompt train_sampling_strategy trust_remote_code
        upcast_layernorm upcast_lmhead_output use_adam_mini use_apollo use_asft_loss use_audio_in_video
        use_cache use_cpu use_dft_loss use_dora use_eaft_loss use_fast_tokenizer use_galore
        use_hyper_parallel use_ipex use_kt use_kv_cache use_liger_kernel use_llama_pro use_mca
        use_mps_device use_muon use_reentrant_gc use_rslora use_swanlab use_unsloth use_unsloth_gc
        use_v1_kernels val_size video_fps video_max_pixels video_maxlen video_min_pixels vllm_config
        vllm_enforce_eager vllm_gpu_util vllm_max_lora_rank vllm_maxlen warmup_ratio warmup_steps
        weight_decay
        """
    ),
    "deepspeed": _names(
        """
        activation_checkpointing aio amp autotuning bf16 bfloat16 checkpoint comet comms_logger
        communication_data_type compile compression_training csv_monitor curriculum_learning data_efficiency
        data_types dataloader_drop_last dump_state eigenvalue elasticity flops_profiler fp16
        gradient_accumulation_steps gradient_clipping gradient_predivide_factor graph_harvesting
        hybrid_engine memory_breakdown monitor nebula optimizer pipeline prescale_gradients
        progressive_layer_drop quantize_training scheduler seq_parallel_communication_data_type
        sparse_attention sparse_gradients steps_per_print tensor_parallel tensorboard timers torch_autocast
        train_batch_size train_micro_batch_size_per_gpu use_data_before_expert_parallelism
        wall_clock_breakdown wandb weight_quantization zenflow zero_allow_untested_optimizer
        zero_force_ds_cpu_optimizer zero_optimization
        """
    ),
}
