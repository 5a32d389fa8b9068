//! Checkpoints as files: what is written is read back, and what is not a checkpoint is refused.

use std::fs;
use std::path::Path;

use ngen3_model::{Activation, Checkpoint, CheckpointMeta, Config, ParamList, TokenizerRef, checkpoint};
use serde_json::json;

/// Odd sizes: width 12, 3 heads, 2 layers, vocabulary 97.
fn small() -> Checkpoint {
    let config = Config::new(2, 3, 12, 16, 97);
    let params = ParamList::new(&config).init(7);
    let training = json!({
        "learning_rate": 0.0003, "tiny": 1e-300, "third": 1.0 / 3.0, "seed": u64::MAX, "below": i64::MIN, "steps": 2000,
        "big": 70_000, "decay": true, "resumed": false, "out": null, "betas": [0.9, 0.95], "nested": {"größe": "ja ✓"},
    });
    let meta = CheckpointMeta {
        iter_num: 2_000,
        best_val_loss: Some(3.4567891234),
        tokenizer: TokenizerRef::Gpt2,
        training: training.as_object().unwrap().clone(),
    };
    Checkpoint { config, params, meta }
}

fn save(path: &Path, checkpoint: &Checkpoint) {
    checkpoint::save(path, &checkpoint.config, &checkpoint.params, &checkpoint.meta).unwrap();
}

#[test]
fn what_is_saved_is_loaded_in_both_formats() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a_model.pt", "a_model.safetensors"] {
        let path = folder.path().join(name);
        let mut expected = small();
        save(&path, &expected);
        assert_eq!(Checkpoint::load(&path).unwrap(), expected, "{name}");

        expected.config.activation = Activation::Gelu;
        expected.config.layer_norm_epsilon = 1e-6;
        expected.meta = CheckpointMeta { tokenizer: TokenizerRef::Json("{\"a\": 1}".into()), ..Default::default() };
        save(&path, &expected);
        assert_eq!(Checkpoint::load(&path).unwrap(), expected, "{name}");
    }
}

#[test]
fn the_content_decides_the_format_not_the_name() {
    let folder = tempfile::tempdir().unwrap();
    let expected = small();
    let (torch, safe) = (folder.path().join("a.pt"), folder.path().join("b.safetensors"));
    save(&torch, &expected);
    save(&safe, &expected);
    let (other_torch, other_safe) = (folder.path().join("c.safetensors"), folder.path().join("d.pt"));
    fs::rename(torch, &other_torch).unwrap();
    fs::rename(safe, &other_safe).unwrap();
    assert_eq!(Checkpoint::load(&other_torch).unwrap(), expected);
    assert_eq!(Checkpoint::load(&other_safe).unwrap(), expected);
}
