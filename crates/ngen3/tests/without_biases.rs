//! A nanoGPT model with `bias=False` keeps that through every command.

mod common;

use std::fs;
use std::path::Path;

use common::succeed;
use ngen3_model::{Checkpoint, CheckpointMeta, Config, ParamList, checkpoint};

/// A folder with a small model without biases, `plain.pt`, and tokens of its vocabulary, `data.bin`.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { bias: false, ..Config::new(2, 2, 32, 16, 50_257) };
    let params = ParamList::new(&config).init(3);
    checkpoint::save(&folder.path().join("plain.pt"), &config, &params, &CheckpointMeta::default()).unwrap();
    let tokens = (0..4_000u32).flat_map(|i| ((i * i % 97 * 31) as u16).to_le_bytes());
    fs::write(folder.path().join("data.bin"), tokens.collect::<Vec<_>>()).unwrap();
    folder
}

#[track_caller]
fn assert_without_biases(path: &Path) -> Checkpoint {
    let model = Checkpoint::load(path).unwrap();
    assert!(!model.config.bias && model.params.len() == ParamList::new(&model.config).total(), "{}", path.display());
    let bytes = fs::read(path).unwrap();
    let named = |name: &[u8]| bytes.windows(name.len()).any(|window| window == name);
    assert!(named(b"ln_1.weight") && !named(b"ln_1.bias") && !named(b"c_fc.bias"), "{}", path.display());
    model
}

#[test]
fn it_is_trained_resumed_and_saved_without() {
    let folder = folder();
    let folder = folder.path();
    let train = "train --init_from plain.pt --data data.bin --out a.pt --batch_size 4 --eval_iters 1 --dtype f32";
    succeed(folder, &format!("{train} --max_iters 3"));
    let trained = assert_without_biases(&folder.join("a.pt"));
    assert_ne!(trained.params, Checkpoint::load(&folder.join("plain.pt")).unwrap().params);
    succeed(folder, "train --data data.bin --out a.pt --resume --max_iters 5");
    assert_eq!(assert_without_biases(&folder.join("a.pt")).meta.iter_num, 5);
    succeed(folder, &format!("{} --max_iters 3 --recompute --dropout 0.1", train.replace("a.pt", "b.safetensors")));
    assert_without_biases(&folder.join("b.safetensors"));
}

#[test]
fn it_is_sampled_measured_distilled_and_fine_tuned() {
    let folder = folder();
    let folder = folder.path();
    succeed(folder, "sample --model_checkpoint plain.pt --prompt one --length 30 --seed 1");
    fs::write(folder.join("text.txt"), "Some words to read, and some more of them.").unwrap();
    succeed(folder, "eval --model_checkpoint plain.pt --tasks perplexity --text text.txt --quant int8");
    let student = "distill --teacher_model_path plain.pt --init_student from-teacher-layers --data data.bin --out s.pt \
                   --max_iters 2 --eval_iters 1 --batch_size 4";
    succeed(folder, student);
    assert_eq!(assert_without_biases(&folder.join("s.pt")).config.n_layer, 1);
    fs::write(folder.join("chats.jsonl"), "[\"Hello\", \"Hi\"]\n[\"Who?\", \"Me\"]\n[\"Why?\", \"So\"]\n").unwrap();
    let finetune =
        "finetune --model_checkpoint plain.pt --data chats.jsonl --finetune_iters 2 --reference_text text.txt";
    for (more, out) in [("", "f.pt"), (" --lora_rank 2", "l.pt")] {
        succeed(folder, &format!("{finetune}{more} --out {out}"));
        assert_without_biases(&folder.join(out));
    }
}

#[test]
fn an_export_has_zeros_where_transformers_wants_biases() {
    let folder = folder();
    let folder = folder.path();
    succeed(folder, "export --model_path plain.pt --output_dir exported");
    let back = Checkpoint::load(&folder.join("exported")).unwrap();
    let plain = Checkpoint::load(&folder.join("plain.pt")).unwrap();
    assert!(back.config.bias);
    let (list, plain_list) = (ParamList::new(&back.config), ParamList::new(&plain.config));
    assert_eq!(back.params[list.wte.clone()], plain.params[plain_list.wte.clone()]);
    assert!(list.blocks.iter().all(|block| back.params[block.c_fc_bias.clone()].iter().all(|&bias| bias == 0.0)));
}
