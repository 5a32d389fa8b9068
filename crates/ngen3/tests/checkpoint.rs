//! Files that are not checkpoints: one clear error line, exit code 1, and no other effect.

mod common;

use std::fs;
use std::path::Path;

use common::{fail, succeed};
use ngen3_model::{CheckpointMeta, Config, ParamList, checkpoint};
use tempfile::TempDir;

/// A small valid checkpoint's bytes.
fn valid(ending: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a").with_extension(ending);
    let config = Config::new(1, 1, 4, 8, 50_257);
    checkpoint::save(&path, &config, &ParamList::new(&config).init(1), &CheckpointMeta::default()).unwrap();
    fs::read(path).unwrap()
}

fn assert_refused(folder: &TempDir, file: &str, reason: &str) {
    let error = fail(folder.path(), &format!("sample --model_checkpoint {file}"), 1);
    assert!(error.contains(file) && error.contains(reason), "expected {reason:?} for {file}, got {error:?}");
}

#[test]
fn damaged_and_hostile_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
    let (torch, safetensors) = (valid("pt"), valid("safetensors"));

    write("empty.pt", b"");
    assert_refused(&folder, "empty.pt", "empty file");
    write("text.pt", b"Not a model, but a line of text.\n");
    assert_refused(&folder, "text.pt", "not a checkpoint");
    assert_refused(&folder, "missing_model.pt", "No such file");

    write("cut.pt", &torch[..torch.len() / 2]);
    assert_refused(&folder, "cut.pt", "damaged or truncated");
    // One bit of the token embedding, in the middle of the file.
    let mut flipped = torch.clone();
    flipped[torch.len() / 2] ^= 4;
    write("flipped.pt", &flipped);
    assert_refused(&folder, "flipped.pt", "storage 0 is damaged: Invalid checksum");

    write("cut.safetensors", &safetensors[..safetensors.len() / 2]);
    assert_refused(&folder, "cut.safetensors", "damaged or truncated");
    write("claims.safetensors", &[&(1u64 << 60).to_le_bytes(), &safetensors[8..]].concat());
    assert_refused(&folder, "claims.safetensors", "the header claims 1152921504606846976 bytes");

    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ngen3-model/tests/fixtures");
    let before = fs::read_dir(folder.path()).unwrap().count();
    for (name, reason) in [
        ("hostile.pt", "unsupported pickle global \"posix.system\""),
        ("legacy.pt", "from before version 1.6: load it with torch.load and torch.save it again"),
        ("untied.pt", "lm_head.weight differs from transformer.wte.weight"),
    ] {
        fs::copy(fixtures.join(name), folder.path().join(name)).unwrap();
        assert_refused(&folder, name, reason);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), before + 3, "a pickle was run");
}

#[test]
fn a_checkpoint_of_another_variant_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("7M_model.pt"), valid("pt")).unwrap();
    let reason = "expected 7M (7,242,624 parameters) with 4 layers, 4 heads, width 128; got 1 layer, 1 head, width 4";
    let error = fail(folder.path(), "sample --model_checkpoint 7M_model.pt --variant 7M", 1);
    assert_eq!(error, format!("7M_model.pt: {reason}"));
    succeed(folder.path(), "sample --model_checkpoint 7M_model.pt --length 2");
}
