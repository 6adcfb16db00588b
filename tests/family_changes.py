"""Small values for the fields of the configurations of transformers, and what a few of its names need besides."""

from __future__ import annotations

from typing import Any

LAYERS, WIDTH, VOCABULARY, WINDOW = 6, 32, 97, 8
IMAGE_TOKEN = 5


def _fields(*rows: tuple[Any, str]) -> dict[str, Any]:
    """Rows of a value and the fields that take it, as field name → value."""
    return {name: value for value, names in rows for name in names.split()}


SMALL = _fields(
    (VOCABULARY, "vocab_size unpadded_vocab_size decoder_vocab_size vocab_size_per_layer_input"),
    (WIDTH, "hidden_size d_model n_embd emb_dim embedding_size embedding_dim word_embed_proj_dim input_embedding_size"),
    (WIDTH, "lru_width backbone_hidden_size output_embedding_size hidden_size_global pronunciation_embed_dim"),
    (WIDTH, "shape_embed_dim router_hidden_size embed_dim"),
    (LAYERS, "num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers encoder_layers layers"),
    (LAYERS, "num_encoder_layers"),
    (4, "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads attention_heads"),
    (4, "num_decoder_attention_heads num_encoder_attention_heads swa_num_attention_heads linear_num_heads"),
    (4, "linear_num_value_heads"),
    (2, "num_key_value_heads swa_num_key_value_heads kv_n_heads linear_num_key_heads"),
    (8, "head_dim swa_head_dim v_head_dim qk_nope_head_dim qk_rope_head_dim index_head_dim indexer_head_dim d_kv d_head"),
    (8, "linear_head_dim linear_key_head_dim linear_value_head_dim kv_channels dim_head attention_head_size"),
    (8, "hidden_size_per_layer_input laurel_rank hc_lowrank dim_model_base d_rel query_pre_attn_scalar"),
    (16, "qk_head_dim q_lora_rank kv_lora_rank o_lora_rank"),
    (16, "index_n_heads indexer_n_heads"),  # with few of them scores tie at zero, and which keys are taken is open
    (4, "rotary_dim"),
    (48, "intermediate_size ffn_dim d_inner n_inner decoder_ffn_dim encoder_ffn_dim dff dim_ff d_ff ffn_hidden_size"),
    (48, "feed_forward_size intermediate_size_mlp dense_intermediate_size prefix_dense_intermediate_size"),
    (16, "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size"),
    (16, "moe_shared_expert_intermediate_size shared_experts_intermediate_size moe_latent_size"),
    (4, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    (2, "num_experts_per_tok moe_k moe_topk moe_top_k top_k_experts zero_expert_num interleave_moe_layer_step"),
    (1, "n_group topk_group n_shared_experts num_shared_experts moe_num_shared_experts"),
    (1, "first_k_dense_replace num_dense_layers indexer_kv_heads"),
    (64, "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions max_source_positions"),
    (64, "original_max_position_embeddings context_length position_bias_max_distance rel_extent"),
    (WINDOW, "sliding_window attention_window_size local_attention window_size sliding_window_size attention_chunk_size"),
    (WINDOW, "local_attention_window_len local_attn_chunk_length lsh_attn_chunk_length floor_scale log_scaling_n_floor"),
    (WINDOW, "keep_window_size indexer_budget"),
    (4, "index_topk index_block_size indexer_compress_ratio block_size num_buckets"),
    (4, "mm_tokens_per_image"),
    (2, "index_topk_blocks"),
    (3, "max_window_layers"),
    (True, "use_sliding_window is_decoder mup_enabled qk_layernorm use_task_id"),
    (0, "pad_token_id hash_seed"),
    (1, "bos_token_id"),
    (2, "eos_token_id type_vocab_size"),
    (4, "state_size ssm_state_size conv_kernel mamba_d_state mamba_d_conv"),
    (2, "expand mamba_expand n_groups mamba_n_groups mamba_ngroups"),
    (8, "chunk_size mamba_chunk_size mamba_head_dim mamba_d_head mamba_num_heads mamba_n_heads n_mamba_heads"),
    (16, "shape_vocab_size pronunciation_vocab_size audio_vocab_size position_bias_num_buckets ngram_vocab_size_base"),
    (8, "make_ngram_vocab_size_divisible_by split_ngram_parts"),
    (2.0, "final_logit_softcapping logits_soft_cap attn_logit_softcapping moe_router_logit_softcapping embedding_multiplier"),
    (2.0, "linear_attn_alpha_factor mlp_beta_factor"),
    (3.0, "logits_scaling"),
    (WIDTH, "projector_hidden_size projection_hidden_size moe_hidden_size alignment_intermediate_size"),
    (WIDTH, "image_text_hidden_size projection_dim"),
    (IMAGE_TOKEN, "image_token_id image_token_index"),
    (6, "video_token_id video_token_index vision_start_token_id"),
    (7, "audio_token_id audio_token_index vision_end_token_id"),
    (0.5, "residual_multiplier logit_scale lm_head_multiplier attention_out_multiplier ssm_in_multiplier key_multiplier"),
)
"""Field name → small value, for a language model; windows are shorter than the texts of the certificate."""

TOWER = SMALL | _fields(
    (2, "num_hidden_layers depth encoder_layers num_blocks"),
    (4, "num_key_value_heads"),
    (32, "image_size crop_size window_size out_hidden_size projection_dim vision_output_dim projector_output_dim"),
    (32, "ext_pw_out_channel depthwise_separable_out_channel nemo_conv_channels mm_embed_dim audio_embed_dim"),
    (32, "post_conv_in_channels post_conv_mid_channels post_conv_out_channels decoder_hidden_size output_channels"),
    (32, "text_hidden_size base_channels latent_channels image_token_embed_dim downsample_hidden_size adapter_in_dim"),
    (32, "adapter_out_dim adapter_input_size projection_hidden_dim projector_input_dim"),
    (32, "patch_embed_hidden_size"),
    (48, "mlp_dim projection_intermediate_size"),
    (16, "num_embeddings codebook_size"),
    (8, "patch_size"),
    (4, "pos_emb_height pos_emb_width max_num_patches"),
    (16, "num_position_embeddings position_embedding_size mm_posemb_size"),
)
"""Field name → small value, for what stands beside the language model: towers of two layers, images of 32 × 32 pixels."""

_MIXED = ["sliding_attention", "full_attention"] * (LAYERS // 2)
_LINEAR = ["linear_attention", "linear_attention", "full_attention"] * (LAYERS // 3)
_HYBRID = ["linear_attention", "linear_attention", "hybrid"] * (LAYERS // 3)
_SPARSE = ["dense"] + ["sparse"] * (LAYERS - 1)
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_THREE_AXES = {"rope_parameters": _ROPE | {"mrope_section": [2, 1, 1]}}  # half of head_dim, shared out

IMPLIED: dict[str, dict[str, Any]] = {
    "kv_lora_rank": {"num_key_value_heads": 4},  # latent attention has as many keys as queries
}
"""Field name → what each configuration that has this field takes."""

CHANGES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 4]},  # else all are mamba
    "blt": {"encoder_hash_byte_group_vocab": 97, "encoder_hash_byte_group_size": [3]},
    "chameleon": {"vocabulary_map": {"<image>": IMAGE_TOKEN} | {f"IMGIMG{'ABCDEFGHIJ'[n]}Z": 20 + n for n in range(10)}},
    "cohere2": {"layer_types": _MIXED},
    "cohere_compass_text": {
        "layer_types": _MIXED,  # else none slides
        "rope_parameters": {"sliding_attention": _ROPE, "full_attention": None},
    },
    "cosmos3_edge_text": _THREE_AXES,
    "dbrx": {"attn_config": {"rope_theta": 1e4, "clip_qkv": 8.0}},  # its attention reads them; one is no field, one is None
    "deepseek_ocr2_text": {"mlp_layer_types": _SPARSE},  # has no default
    "deepseek_v4": {"compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8}},
    "dots3_note": {"vision_config": {"mlp_layer_types": ["dense", "sparse"]}},  # the default is for 42 layers
    "dots3_note_text": {  # of its sliding layers; they are no fields of its configuration
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": 8,
    },
    "emu3": {
        "vocabulary_map": {"<image>": IMAGE_TOKEN, "<|extra_200|>": 6}
        | {f"<|visual token {n:06d}|>": 20 + n for n in range(16)}
    },
    "ernie4_5_vl_moe_text": {
        "moe_intermediate_size": [16, 16],  # of text and of image experts
        "rope_parameters": _ROPE | {"mrope_section": [1, 1, 2]},
    },
    "falcon_h1": {"mamba_d_ssm": 64},  # mamba_n_heads × mamba_d_head
    "florence_vision": {  # one value for each of its stages
        "patch_size": (7, 3, 3, 3),
        "depths": (1, 1, 1, 1),
        "embed_dim": (8, 16, 32, 32),
        "num_heads": (2, 2, 2, 2),
        "num_groups": (2, 2, 2, 2),
    },
    "gemma3_text": {"layer_types": _MIXED},
    "gemma3n_text": {"layer_types": _MIXED, "num_kv_shared_layers": 2},  # a layer of each type before them
    "gemma4_text": {
        "layer_types": _MIXED,
        "num_kv_shared_layers": 2,
        "global_head_dim": 16,  # no field of its configuration
        "use_double_wide_mlp": True,
        "enable_moe_block": True,
    },
    "gemma4_unified_text": {"global_head_dim": 16, "num_global_key_value_heads": 1, "attention_k_eq_v": True},
    "glm4v_moe_text": {"rope_parameters": _ROPE | {"mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5}},
    "glm4v_text": _THREE_AXES,
    "glm5_next_text": {"index_kpool": 2, "qk_rope_head_dim": 0},  # allows no other
    "glm_ocr_text": _THREE_AXES,
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]]},
    "granite4_vision": {
        "deepstack_layer_map": [(0, 1), (1, 3)],
        "spatial_target_layers": [2],
        "downsample_rate": "1/2",
        "vision_config": {"hidden_size": 64},  # one head of 64 in its query transformer
    },
    "granitemoehybrid": {"layer_types": _LINEAR},  # else all are mamba
    "hunyuan_vl_text": {"rope_parameters": _ROPE | {"mrope_section": [1, 1, 1, 1]}},
    "janus_vqgan": {"channel_multiplier": (1, 1)},
    "laguna": {"layer_types": _MIXED},  # else none slides
    "lfm2": {"full_attn_idxs": [2, 4], "block_auto_adjust_ff_dim": False},  # else none is a convolution
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention"] * (LAYERS // 3)},  # has no default
    "mamba2": {"num_heads": 8},  # expand × hidden_size / head_dim
    "mellum": {"layer_types": _MIXED},  # else none slides
    "minimax_m3_vl_text": {
        "layer_types": ["full_attention", "minimax_m3_sparse"] * 3,
        "mlp_layer_types": _SPARSE,
        "index_n_heads": 2,
    },
    "ministral": {"layer_types": _MIXED},
    "molmo2_adapter": {"vision_feature_layer": [0, 1]},
    "molmo2_vision": {"image_size": [32, 32]},
    "muse_spark_audio": {"patch_sizes": (4, 4), "hidden_sizes": (16, 32), "depths": (1, 1)},  # one value for each layer
    "nemotron_h": {"layer_types": [*_LINEAR[1:], "mlp", "moe"]},
    "nemotron_h_omni": {
        "vision_config": {"model_type": "radio", "video_temporal_patch_size": 2},
        "audio_config": {"model_type": "parakeet_encoder", "projection_hidden_size": 32, "projection_bias": False},
    },
    "paddleocr_vl_text": _THREE_AXES,
    "qwen2": {"layer_types": _MIXED},
    "qwen2_5_omni_text": _THREE_AXES,
    "qwen2_5_vl_text": _THREE_AXES,
    "qwen2_vl_text": _THREE_AXES,
    "qwen3": {"layer_types": _MIXED},
    "qwen4_exp_text": {"ple_layer_ids": [2], "heads_per_ngram": 2},  # a layer with embeddings of n-grams
    "qwen3_vl_moe_vision": {"deepstack_visual_indexes": [0, 1]},  # its pixels enter after the first two layers of text too
    "qwen3_vl_vision": {"deepstack_visual_indexes": [0, 1]},
    "reformer": {"axial_pos_shape": (8, 8), "axial_pos_embds_dim": (16, 16)},  # of 64 positions and 32 channels
    "xlm": {"causal": True},
    "xlnet": {"attn_type": "uni"},  # else tokens see later ones
    "xmod": {"default_language": "en_XX"},  # has no default
    "zamba": {"layers_block_type": _HYBRID},
    "zamba2": {"layers_block_type": _HYBRID},
    "zaya": {"num_experts_per_tok": 1, "layer_types": ["hybrid", "hybrid_sliding"] * (LAYERS // 2)},  # allows no other
}
"""Model type of a configuration, or of a part of one → what it takes besides the small values."""
