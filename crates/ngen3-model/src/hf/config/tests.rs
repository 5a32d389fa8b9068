//! Both families: what is written is read, defaults, and what is refused.

use serde_json::{Value, json};

use super::*;
use crate::{Activation, GPT2_VOCAB_SIZE, Rope, RopeScaling};

mod gpt2_entries {
    use super::*;
    #[test]
    fn what_is_written_is_read() {
        let mut config = Config::new(2, 3, 12, 16, 97);
        config.activation = Activation::Gelu;
        config.layer_norm_epsilon = 1e-6;
        let text = write(&config, Some(96), 0.1, "float32").to_string();
        assert_eq!(parse(&text), Ok(Parsed { config, tied: true }));
        assert!(text.contains("\"layer_norm_epsilon\":1e-6"), "{text}");
    }

    #[test]
    fn what_is_not_said_is_gpt2() {
        let config = |text: &str| parse(text).map(|parsed| parsed.config);
        assert_eq!(config("{\"model_type\": \"gpt2\"}"), Ok(Config::new(12, 12, 768, 1024, GPT2_VOCAB_SIZE)));
        let other_names = r#"{"model_type": "gpt2", "num_hidden_layers": 2, "num_attention_heads": 3, "hidden_size": 12,
            "n_ctx": 16, "vocab_size": 97, "n_inner": 48, "activation_function": "gelu_pytorch_tanh",
            "reorder_and_upcast_attn": true}"#;
        assert_eq!(config(other_names), Ok(Config::new(2, 3, 12, 16, 97)));
    }

    #[test]
    fn what_cannot_be_run_exactly_is_named() {
        for (name, value, reason) in [
            (
                "model_type",
                json!("bert"),
                "unsupported model_type \"bert\": expected one of gpt2, llama, mistral, qwen2, qwen3",
            ),
            ("model_type", json!(null), "missing model_type"),
            ("architectures", json!(["GPT2ForSequenceClassification"]), "unsupported architectures [\"GPT2ForSeq"),
            (
                "activation_function",
                json!("relu"),
                "unsupported activation_function \"relu\": expected gelu_new or gelu",
            ),
            ("activation_function", json!(7), "activation_function: expected a name, got 7"),
            ("scale_attn_weights", json!(false), "unsupported scale_attn_weights false: expected true"),
            (
                "scale_attn_by_inverse_layer_idx",
                json!(true),
                "unsupported scale_attn_by_inverse_layer_idx true: expected false",
            ),
            ("add_cross_attention", json!(true), "unsupported add_cross_attention true: expected false"),
            ("quantization_config", json!({"quant_method": "gptq"}), "unsupported quantisation \"gptq\""),
            ("n_inner", json!(1000), "unsupported n_inner 1000: expected 4 · n_embd = 3072"),
            ("n_layer", json!(0), "n_layer is 0"),
            ("n_layer", json!(-1), "n_layer: expected a size, got -1"),
            ("n_embd", json!(1e300), "n_embd: expected a size, got 1e+300"),
            ("n_embd", json!(u64::MAX), "n_embd is 18446744073709551615"),
            ("n_head", json!(7), "n_embd 768 is not a multiple of n_head 7"),
            ("layer_norm_epsilon", json!("small"), "layer_norm_epsilon: expected a number, got \"small\""),
            ("layer_norm_epsilon", json!(-1), "layer_norm_epsilon is -1"),
        ] {
            let mut file = json!({"model_type": "gpt2"});
            file[name] = value;
            let error = parse(&file.to_string()).unwrap_err();
            assert!(error.contains(reason), "{error:?} does not say {reason:?}");
        }
        assert!(parse("[]").unwrap_err().contains("expected a JSON object"));
    }
}

mod llama_entries {
    use super::*;

    fn smollm2() -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 576,
            "intermediate_size": 1536, "max_position_embeddings": 8192, "num_attention_heads": 9, "num_hidden_layers": 30,
            "num_key_value_heads": 3, "rms_norm_eps": 1e-5, "rope_theta": 100000, "tie_word_embeddings": true,
            "vocab_size": 49152, "rope_scaling": null, "attention_bias": false, "mlp_bias": false, "pretraining_tp": 1
        })
    }

    #[test]
    fn smollm2_is_read_as_it_is() {
        let config = parse(&smollm2().to_string()).unwrap().config;
        let rope = Some(Rope { theta: 100_000.0, context: 8192, scaling: RopeScaling::Default });
        let expected = Config { rope, layer_norm_epsilon: 1e-5, ..Config::llama(30, 9, 3, 576, 1536, 8192, 49152) };
        assert_eq!(config, expected);
        assert_eq!(crate::ParamList::new(&config).total(), 134_515_008);
    }

    #[test]
    fn what_is_written_is_read() {
        let yarn = RopeScaling::Yarn {
            factor: 4.0,
            original_max_position_embeddings: 32,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            attention_factor: 1.25,
        };
        let llama3 = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 64,
        };
        for (family, scaling) in [
            (Family::Llama, llama3),
            (Family::Mistral, RopeScaling::Default),
            (Family::Qwen2, yarn),
            (Family::Qwen3, RopeScaling::Linear { factor: 2.0 }),
        ] {
            let config = Config {
                family,
                tied: family != Family::Mistral,
                qkv_bias: family == Family::Qwen2,
                qk_norm: family == Family::Qwen3,
                head_dim: (family == Family::Qwen3).then_some(10),
                rope: Some(Rope { theta: 5e5, context: 128, scaling }),
                ..Config::llama(2, 4, 2, 32, 48, 128, 97)
            };
            let text = write(&config, Some(96), 0.0, "float32").to_string();
            assert_eq!(parse(&text).map(|parsed| parsed.config), Ok(config), "{text}");
        }
    }

    #[test]
    fn biases_are_those_of_the_family() {
        let config = |family: &str, name: &str, value: bool| {
            let mut file = smollm2();
            file["model_type"] = family.into();
            file["architectures"] = Value::Null;
            file[name] = value.into();
            parse(&file.to_string()).map(|Parsed { config, .. }| (config.qkv_bias, config.o_bias(), config.mlp_bias))
        };
        assert_eq!(config("llama", "attention_bias", true), Ok((true, true, false)));
        assert_eq!(config("llama", "mlp_bias", true), Ok((false, false, true)));
        assert_eq!(config("qwen3", "attention_bias", true), Ok((true, true, false)));
        assert_eq!(config("qwen2", "attention_bias", true), Ok((true, false, false)));
        let refused = |family: &str, name: &str, value: bool| config(family, name, value).unwrap_err();
        assert_eq!(refused("qwen2", "attention_bias", false), "unsupported attention_bias false: expected true");
        assert_eq!(refused("mistral", "attention_bias", true), "unsupported attention_bias true: expected false");
        assert_eq!(refused("qwen3", "mlp_bias", true), "unsupported mlp_bias true: expected false");
    }

    #[test]
    fn context_is_that_in_which_nothing_changes() {
        let block_size = |name: &str, value: Value| {
            let mut file = smollm2();
            file[name] = value;
            parse(&file.to_string()).map(|parsed| parsed.config.block_size)
        };
        assert_eq!(block_size("sliding_window", json!(4096)), Ok(4096));
        assert_eq!(block_size("sliding_window", json!(null)), Ok(8192));
        assert_eq!(block_size("rope_scaling", json!({"type": "dynamic", "factor": 4.0})), Ok(8192));
        let parameters = json!({"rope_type": "default", "rope_theta": 5.0, "partial_rotary_factor": 1});
        assert_eq!(block_size("rope_parameters", parameters), Ok(8192));
    }

    #[test]
    fn what_cannot_be_run_exactly_is_named() {
        for (name, value, reason) in [
            ("architectures", json!(["LlamaForSequenceClassification"]), "unsupported architectures"),
            ("hidden_act", json!("gelu"), "unsupported hidden_act \"gelu\": expected \"silu\""),
            ("attention_bias", json!("all"), "attention_bias: expected true or false, got \"all\""),
            ("num_key_value_heads", json!(2), "n_head 9 is not a multiple of n_kv_head 2"),
            ("head_dim", json!(7), "expected heads of an even width"),
            ("hidden_size", json!(null), "missing hidden_size"),
            ("hidden_size", json!("wide"), "hidden_size: expected a size, got \"wide\""),
            ("rope_theta", json!(-1), "rope_theta: expected a number above 1, got -1"),
            ("rope_scaling", json!({"rope_type": "longrope"}), "unsupported rope_type \"longrope\""),
            ("rope_scaling", json!({"rope_type": "linear"}), "rope_scaling: missing factor"),
            ("rope_scaling", json!({"type": "linear", "factor": 0}), "factor: expected a number above 0, got 0"),
            ("rope_scaling", json!(7), "rope_scaling: expected an object, got 7"),
            ("vocab_size", json!(1u64 << 40), "vocab_size is"),
        ] {
            let mut file = smollm2();
            file[name] = value;
            let error = parse(&file.to_string()).unwrap_err();
            assert!(error.contains(reason), "{error:?} does not say {reason:?}");
        }
    }
}
