use std::fs;

use super::*;
use crate::TokenFile;

static GO: AtomicBool = AtomicBool::new(false);

fn make(root: &Path, sources: &[Source], tokenizer: Option<&Path>, threads: usize) -> Result<DatasetSummary, Error> {
    let tokenizer = tokenizer.map(TokenizerFile::from);
    let spec = DatasetSpec {
        name: "x",
        sources,
        tokenizer,
        text: TextOptions::default(),
        split_by: SplitBy::Document,
        eot_splits: None,
        threads,
        root,
    };
    build_dataset(&spec, &GO, &mut |_| {})
}

fn tokens(file: &TokenFile) -> Vec<u32> {
    let mut tokens = Vec::new();
    file.copy(0..file.len(), &mut tokens);
    tokens
}

/// Returns a text of several chunks whose ids would reveal a wrong split or order.
fn long_text() -> String {
    (0..400_000).map(|n| format!("{n} the  'll\n\n é{}", n % 7)).collect()
}

#[test]
fn pieces_and_threads_do_not_change_the_ids() {
    let root = tempfile::tempdir().unwrap();
    let text = long_text();
    let paths = [root.path().join("a.txt"), root.path().join("b.txt")];
    fs::write(&paths[0], &text).unwrap();
    fs::write(&paths[1], "short").unwrap();
    let mut expected = Tokenizer::gpt2().encode(&text).unwrap();
    let short = Tokenizer::gpt2().encode("short").unwrap();
    let text_tokens = expected.len() + short.len();
    expected.push(50_256);
    expected.extend(short);
    expected.push(50_256);
    for threads in [1, 5] {
        let sources = paths.clone().map(Source::Path);
        let summary = make(root.path(), &sources, None, threads).unwrap();
        assert_eq!(summary.text_bytes, text.len() as u64 + 5);
        assert_eq!((summary.text_tokens, summary.documents), (text_tokens as u64, 2));
        assert_eq!(summary.end_of_text.as_deref(), Some("<|endoftext|>"));
        let file = TokenFile::open(&summary.data).unwrap();
        assert!(tokens(&file) == expected, "{threads} threads");
        file.verify().unwrap();
        let meta = file.meta().unwrap();
        assert_eq!((meta.tokenizer.as_str(), meta.vocab_size, meta.dtype), ("gpt2", 50_257, Dtype::Uint16));
        assert_eq!((meta.tokens, meta.documents), (expected.len() as u64, 2));
        assert_eq!(meta.source, paths.clone().map(|path| path.display().to_string()));
        assert_eq!(names(&root.path().join("_data_x_")), ["data.bin", "meta.json"]);
    }
}

#[test]
fn a_tokenizer_of_ones_own_travels_with_the_data_and_leaves_with_it() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("gpt2");
    fs::write(&path, Tokenizer::gpt2().to_json()).unwrap();
    let summary = make(root.path(), &[Source::Shakespeare], Some(&path), 2).unwrap();
    let folder = root.path().join("_data_x_");
    assert_eq!(names(&folder), ["data.bin", "meta.json", "tokenizer.json"]);
    let file = TokenFile::open(&summary.data).unwrap();
    assert_eq!(file.len(), 338_026);
    assert!(file.meta().unwrap().tokenizer_sha256.is_some(), "although it has the built-in one's name");
    let json = TokenizerRef::Json(Tokenizer::gpt2().to_json());
    assert_eq!(file.tokenizer().unwrap().reference(), json, "a model's reference has the file too");
    make(root.path(), &[Source::Shakespeare], None, 2).unwrap();
    assert_eq!(names(&folder), ["data.bin", "meta.json"]);
}

#[test]
fn after_an_error_there_is_nothing_new_and_the_old_is_as_it_was() {
    let root = tempfile::tempdir().unwrap();
    let bad = root.path().join("bad.txt");
    fs::write(&bad, [long_text().as_bytes(), b"\xff"].concat()).unwrap();
    let empty = root.path().join("empty.txt");
    fs::write(&empty, "").unwrap();
    let fails = || {
        for path in [&bad, &empty, &root.path().join("missing.txt")] {
            make(root.path(), &[Source::Path(path.clone())], None, 2).unwrap_err();
        }
        let spec = DatasetSpec {
            name: "x",
            sources: &[Source::Shakespeare],
            tokenizer: None,
            text: TextOptions::default(),
            split_by: SplitBy::Document,
            eot_splits: None,
            threads: 2,
            root: root.path(),
        };
        let error = build_dataset(&spec, &AtomicBool::new(true), &mut |_| {}).unwrap_err();
        assert!(matches!(error, Error::Interrupted));
    };
    fails();
    assert!(!root.path().join("_data_x_").exists());
    let data = make(root.path(), &[Source::Shakespeare], None, 2).unwrap().data;
    fails();
    TokenFile::open(&data).unwrap().verify().unwrap();
    assert_eq!(names(&root.path().join("_data_x_")), ["data.bin", "meta.json"]);
}

#[test]
fn whatever_stands_in_the_way_is_named_before_anything_is_replaced() {
    for name in ["data.bin", "meta.json", "tokenizer.json"] {
        let root = tempfile::tempdir().unwrap();
        let in_the_way = root.path().join("_data_x_").join(name);
        fs::create_dir_all(&in_the_way).unwrap();
        let error = make(root.path(), &[Source::Shakespeare], None, 2).unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot write {}: ", in_the_way.display())), "{error}");
        assert_eq!(names(&root.path().join("_data_x_")), [name]);
    }
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("_data_x_"), "a file").unwrap();
    let error = make(root.path(), &[Source::Shakespeare], None, 2).unwrap_err().to_string();
    assert!(error.starts_with("cannot write ") && error.contains("_data_x_"), "{error}");
}

#[test]
fn data_that_is_validated_by_a_file_of_its_own_is_not_replaced_under_it() {
    let root = tempfile::tempdir().unwrap();
    let make = || make(root.path(), &[Source::Shakespeare], None, 2);
    let data = make().unwrap().data;
    let val = data.with_file_name("val.bin");
    // A val.bin made before there is a data.bin belongs to the data.bin to come.
    fs::rename(&data, &val).unwrap();
    make().unwrap();
    let before = fs::metadata(&data).unwrap().modified().unwrap();
    let error = make().unwrap_err().to_string();
    let expected =
        format!("{} is the validation split of {}, which would be replaced; ", val.display(), data.display());
    assert!(error.starts_with(&expected), "{error}");
    assert!(val.exists() && fs::metadata(&data).unwrap().modified().unwrap() == before);
}

#[test]
fn what_is_read_only_is_neither_replaced_nor_removed() {
    let root = tempfile::tempdir().unwrap();
    let tokenizer = root.path().join("own.json");
    fs::write(&tokenizer, Tokenizer::gpt2().to_json()).unwrap();
    make(root.path(), &[Source::Shakespeare], Some(&tokenizer), 2).unwrap();
    let bad = root.path().join("bad.txt");
    fs::write(&bad, b"\xff").unwrap();
    for name in ["data.bin", "meta.json", "tokenizer.json"] {
        let path = root.path().join("_data_x_").join(name);
        let writable = fs::metadata(&path).unwrap().permissions();
        let mut read_only = writable.clone();
        read_only.set_readonly(true);
        fs::set_permissions(&path, read_only).unwrap();
        // Reported before any text is read.
        let error = make(root.path(), &[Source::Path(bad.clone())], None, 2).unwrap_err().to_string();
        assert_eq!(error, format!("cannot write {}: it is read-only", path.display()));
        fs::set_permissions(&path, writable).unwrap();
    }
    make(root.path(), &[Source::Shakespeare], None, 2).unwrap();
}

#[test]
fn names_that_would_lead_elsewhere_are_refused() {
    assert_eq!(dataset_folder("my data.v2").unwrap(), "_data_my data.v2_");
    for name in ["", "a/b", "..\\b", "a\0", "a\n"] {
        assert!(dataset_folder(name).unwrap_err().to_string().contains("invalid dataset name"), "{name:?}");
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn all_files_are_replaced_at_once_as_private_as_before_and_files_of_others_stay() {
    let root = tempfile::tempdir().unwrap();
    let (text, folder) = (root.path().join("a.txt"), root.path().join("_data_x_"));
    let build = |content: &str| {
        fs::write(&text, content).unwrap();
        let summary = make(root.path(), &[Source::Path(text.clone())], None, 1).unwrap();
        TokenFile::open(&summary.data).unwrap().verify().unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2, "nothing temporary is left");
    };
    build("one");
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let number = || fs::metadata(&folder).unwrap().ino();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(folder.join("data.bin"), fs::Permissions::from_mode(0o600)).unwrap();
        let before = number();
        build("another text");
        assert_ne!(number(), before, "a new folder took the place of the old one");
        assert_eq!((mode(&folder), mode(&folder.join("data.bin"))), (0o700, 0o600));
    }
    fs::write(folder.join("notes.txt"), "mine").unwrap();
    build("a third text");
    assert_eq!(names(&folder), ["data.bin", "meta.json", "notes.txt"]);
}
