//! The hub's client against a hub on loopback: downloads, the cache, and handling of errors.

mod downloads;
mod pushes;
mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ngen3_data::Error;
use ngen3_data::hub::{CommitInfo, Env, Hub, RepoKind, Snapshot};
use ngen3_data::source::Event;
use server::{Access, FakeHub, Fault};

const NAME: &str = "someone/something";
const TIMEOUT: Duration = Duration::from_secs(30);

fn hub(server: &FakeHub, cache: &Path, token: Option<&str>) -> Hub {
    Hub::new(Env {
        endpoint: server.endpoint.clone(),
        cache: cache.into(),
        token: token.map(str::to_owned),
        offline: false,
        timeout: TIMEOUT,
    })
}

fn offline(server: &FakeHub, cache: &Path) -> Hub {
    let (endpoint, cache) = (server.endpoint.clone(), cache.into());
    Hub::new(Env { endpoint, cache, token: None, offline: true, timeout: TIMEOUT })
}

fn open(hub: &Hub) -> Result<Snapshot, Error> {
    hub.open(RepoKind::Dataset, NAME, None, &mut |_| true)
}

fn fetch(snapshot: &Snapshot, path: &str) -> Result<PathBuf, String> {
    snapshot.fetch(path, &mut |_| true).map_err(|error| error.to_string())
}

/// Lists every file and link below a folder, as paths.
fn below(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                found.push(entry.path().strip_prefix(folder).unwrap().display().to_string());
            }
        }
    }
    found.sort();
    found
}

fn content() -> Vec<u8> {
    (0..300_000u32).flat_map(u32::to_le_bytes).collect()
}

#[test]
fn files_are_kept_as_python_keeps_them_and_fetched_once() {
    let (server, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
    let files: [(&str, &[u8]); 3] =
        [("README.md", b"read"), ("data/a b#.txt", b"text"), ("data/x.parquet", &content())];
    let commit = server.add("datasets", NAME, "main", &files);
    let hub = hub(&server, cache.path(), Some("hf_secret"));
    let snapshot = open(&hub).unwrap();
    assert_eq!(snapshot.commit(), commit);
    assert!(snapshot.is_complete());
    let found: Vec<_> = snapshot.files().iter().map(|file| (file.path.as_str(), file.size)).collect();
    assert_eq!(found, files.map(|(path, bytes)| (path, Some(bytes.len() as u64))));
    let folder = cache.path().join("datasets--someone--something");
    for (path, bytes) in files {
        let kept = fetch(&snapshot, path).unwrap();
        assert_eq!(kept, folder.join("snapshots").join(&commit).join(path));
        assert!(fs::read(&kept).unwrap() == bytes);
        let target = fs::read_link(&kept).unwrap();
        assert!(target.starts_with(if path.contains('/') { "../../../blobs" } else { "../../blobs" }), "{target:?}");
    }
    assert_eq!(fs::read_to_string(folder.join("refs/main")).unwrap(), commit);
    assert!(folder.join(format!("trees/{commit}.json")).exists());
    assert!(!below(cache.path()).iter().any(|path| path.ends_with(".incomplete")));

    let log = server.log();
    assert_eq!(log.len(), 1 + 2 * 3 + 1, "{log:#?}");
    let (others, ours): (Vec<_>, Vec<_>) = log.iter().partition(|line| line.starts_with("other server"));
    assert!(others.len() == 1 && !others[0].contains("secret"), "the token goes only to the hub: {others:?}");
    assert!(ours.iter().all(|line| line.contains("token=Bearer hf_secret")), "{ours:?}");

    fetch(&open(&hub).unwrap(), "data/x.parquet").unwrap();
    assert_eq!(server.log().len(), 1, "a file in the cache is not requested again");
    // The same content at another commit is not fetched again either.
    server.add("datasets", NAME, "v2", &[("renamed.parquet", &content())]);
    let second = hub.open(RepoKind::Dataset, NAME, Some("v2"), &mut |_| true).unwrap();
    assert!(fs::read(fetch(&second, "renamed.parquet").unwrap()).unwrap() == content());
    assert!(!server.log().iter().any(|line| line.starts_with("other server")));

    let offline = offline(&server, cache.path());
    let snapshot = open(&offline).unwrap();
    assert!(snapshot.is_complete() && snapshot.commit() == commit && snapshot.files().len() == 3);
    assert!(fs::read(fetch(&snapshot, "data/x.parquet").unwrap()).unwrap() == content());
    let by_commit = offline.open(RepoKind::Dataset, NAME, Some(&commit), &mut |_| true).unwrap();
    assert_eq!(by_commit.files(), snapshot.files());
    assert!(server.log().is_empty(), "offline makes no requests");
}

#[test]
fn offline_only_what_was_fetched_is_there() {
    let (server, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
    let error = open(&offline(&server, cache.path())).unwrap_err().to_string();
    assert!(
        error.starts_with("cannot fetch dataset someone/something: HF_HUB_OFFLINE is set, and main is not in"),
        "{error}"
    );
    server.add("datasets", NAME, "main", &[("a.txt", b"a"), ("b.txt", b"b")]);
    fetch(&open(&hub(&server, cache.path(), None)).unwrap(), "a.txt").unwrap();
    let snapshot = open(&offline(&server, cache.path())).unwrap();
    fetch(&snapshot, "a.txt").unwrap();
    let error = fetch(&snapshot, "b.txt").unwrap_err();
    assert!(error.starts_with("cannot fetch b.txt of dataset someone/something: HF_HUB_OFFLINE is set"), "{error}");
    // Python's older caches have no listing: the missing files are unknown there.
    fs::remove_dir_all(cache.path().join("datasets--someone--something/trees")).unwrap();
    let snapshot = open(&offline(&server, cache.path())).unwrap();
    assert!(!snapshot.is_complete() && snapshot.has("a.txt") && !snapshot.has("b.txt"));
}

#[test]
fn revisions_and_renamed_repositories_are_found() {
    let (server, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
    server.add("datasets", NAME, "main", &[("a.txt", b"new")]);
    let old = server.add("datasets", NAME, "refs/convert/parquet", &[("a.txt", b"old")]);
    server.rename("other/name", NAME);
    let hub = hub(&server, cache.path(), None);
    for (name, revision, text) in [
        (NAME, None, "new"),
        (NAME, Some("refs/convert/parquet"), "old"),
        (NAME, Some(old.as_str()), "old"),
        ("other/name", None, "new"),
    ] {
        let snapshot = hub.open(RepoKind::Dataset, name, revision, &mut |_| true).unwrap();
        assert_eq!(fs::read_to_string(fetch(&snapshot, "a.txt").unwrap()).unwrap(), text, "{name} {revision:?}");
    }
    assert!(cache.path().join("datasets--someone--something/refs/refs/convert/parquet").exists());
}

#[test]
fn refusals_give_the_hubs_own_reason_and_what_to_do() {
    let (server, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
    server.add("datasets", NAME, "main", &[("a.txt", b"a")]);
    server.add("datasets", "someone/secret", "main", &[("a.txt", b"a")]);
    server.restrict("datasets", "someone/secret", Access::Private("hf_right"));
    let reason = |name: &str, revision, token| {
        let hub = hub(&server, cache.path(), token);
        hub.open(RepoKind::Dataset, name, revision, &mut |_| true).unwrap_err().to_string()
    };
    let error = reason("someone/nothing", None, None);
    let expected = "cannot fetch dataset someone/nothing: the hub returned 401 Unauthorized: Invalid username or \
                    password (check the name; for a private repository, set HF_TOKEN to a token with access)";
    assert_eq!(error, expected);
    assert!(reason("someone/secret", None, None).contains("Invalid username or password (check the name;"));
    let error = reason("someone/secret", None, Some("hf_wrong"));
    assert!(error.contains("404 Not Found: Repository not found (check the name, and that the token"), "{error}");
    hub(&server, cache.path(), Some("hf_right"))
        .open(RepoKind::Dataset, "someone/secret", None, &mut |_| true)
        .unwrap();
    let error = reason(NAME, Some("v9"), None);
    assert!(error.ends_with("404 Not Found: Invalid rev id: v9 (check the revision)"), "{error}");

    server.restrict("datasets", NAME, Access::Gated);
    let error = fetch(&open(&hub(&server, cache.path(), None)).unwrap(), "a.txt").unwrap_err();
    let expected = "cannot fetch a.txt of dataset someone/something: the hub returned 403 Forbidden: Access to \
                    someone/something is restricted and you are not in the authorized list (request access on its \
                    page, then set HF_TOKEN to your access token)";
    assert_eq!(error, expected);

    for name in ["", "a/b/c", "../x", "a/..", "a b", "-a/b", "http://x"] {
        let expected = format!("expected a local path or the name of a dataset on the hub (OWNER/NAME), got {name:?}");
        assert_eq!(reason(name, None, None), expected);
    }
    assert!(reason(NAME, Some("../../x"), None).contains("expected a branch, tag or commit"));
}

#[test]
fn a_hub_that_lies_is_found_out_and_leaves_nothing() {
    let (server, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
    server.add("datasets", NAME, "main", &[("x.parquet", &content()), ("y.txt", b"text")]);
    let snapshot = open(&hub(&server, cache.path(), None)).unwrap();
    let check = |path: &str, part: &str, fault: Fault, reason: &str| {
        let times = if reason == "too many redirects" { 11 } else { 1 };
        server.fault(part, times, fault);
        let error = fetch(&snapshot, path).unwrap_err();
        assert!(error.contains(reason), "{error}");
        let left = below(cache.path());
        assert!(!left.iter().any(|path| path.contains("blobs") || path.contains("snapshots")), "{left:?}");
    };
    check("x.parquet", "/other/", Fault::Flip, "the SHA-256 of the download does not match the hub's");
    check("x.parquet", "/other/", Fault::Short(9), "expected 1200000 bytes, but the server has 1199991");
    check("y.txt", "resolve", Fault::Short(1), "expected 4 bytes, but the server has 3");
    check("y.txt", "resolve", Fault::Answer(200, "", "much longer"), "expected 4 bytes, but the server has 11");
    check("x.parquet", "/other/", Fault::Answer(404, "", ""), "404 Not Found");
    check(
        "x.parquet",
        "resolve",
        Fault::Answer(302, "Location: file:///etc/passwd", ""),
        "redirects to an invalid URL",
    );
    check(
        "x.parquet",
        "resolve",
        Fault::Answer(302, "Location: /datasets/someone/something/resolve/main/x.parquet", ""),
        "too many redirects",
    );
}

#[test]
fn names_that_lead_out_of_the_cache_are_refused() {
    let outside = tempfile::tempdir().unwrap();
    let (server, cache) = (FakeHub::start(), outside.path().join("hub"));
    let hub = hub(&server, &cache, None);
    for path in ["../evil", "a/../../evil", "/etc/evil", "a\\\\..\\\\evil", "C:evil", "a//b", "./a"] {
        server.add("datasets", NAME, "main", &[(path, b"evil")]);
        let error = open(&hub).unwrap_err().to_string();
        assert!(error.contains("refused the file name") && error.contains("outside the cache"), "{path}: {error}");
    }
    for body in ["{\"sha\":\"../../evil\",\"siblings\":[]}", "[1]", "{\"siblings\":[]}", "", "\u{0}"] {
        server.fault("/api/", 1, Fault::Answer(200, "", Box::leak(body.to_owned().into_boxed_str())));
        open(&hub).unwrap_err();
    }
    let nested: &str = Box::leak(format!("{{\"sha\":\"x\",\"y\":{}", "[".repeat(1 << 20)).into_boxed_str());
    server.fault("/api/", 1, Fault::Answer(200, "", nested));
    open(&hub).unwrap_err();
    assert!(below(outside.path()).is_empty(), "{:?}", below(outside.path()));
}

#[test]
fn a_model_comes_with_all_that_belongs_to_it() {
    let (server, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
    let hub = hub(&server, cache.path(), None);
    let fetched = |name: &str| {
        hub.fetch_model(name, None, &mut |_| true).map(|folder| below(&folder)).map_err(|error| error.to_string())
    };
    let tokenizer: [(&str, &[u8]); 3] = [("tokenizer.json", b"{}"), ("vocab.json", b"{}"), ("merges.txt", b"")];
    let with =
        |files: &[(&'static str, &'static [u8])]| [&tokenizer[..], files, &[("onnx/model.bin", b"big")]].concat();
    let tokens = ["merges.txt", "tokenizer.json", "vocab.json"];

    server.add(
        "models",
        "gpt2",
        "main",
        &with(&[("config.json", b"{}"), ("model.safetensors", b"s"), ("pytorch_model.bin", b"p")]),
    );
    let mut expected = [&tokens[..], &["config.json", "model.safetensors"]].concat();
    expected.sort();
    assert_eq!(fetched("gpt2").unwrap(), expected, "safetensors are preferred, and no other files are fetched");

    let index = b"{\"metadata\":{},\"weight_map\":{\"a\":\"model-1.safetensors\",\"b\":\"model-2.safetensors\",\"c\":\"model-1.safetensors\"}}";
    server.add(
        "models",
        "a/sharded",
        "main",
        &with(&[
            ("config.json", b"{}"),
            ("model.safetensors.index.json", index),
            ("model-1.safetensors", b"1"),
            ("model-2.safetensors", b"2"),
            ("model-3.safetensors", b"3"),
        ]),
    );
    let files = fetched("a/sharded").unwrap();
    assert!(
        files.contains(&"model-2.safetensors".into()) && !files.contains(&"model-3.safetensors".into()),
        "{files:?}"
    );

    server.add("models", "a/old", "main", &with(&[("config.json", b"{}"), ("pytorch_model.bin", b"p")]));
    assert!(fetched("a/old").unwrap().contains(&"pytorch_model.bin".into()));
    server.add("models", "a/none", "main", &with(&[("config.json", b"{}")]));
    assert_eq!(
        fetched("a/none").unwrap_err(),
        "cannot fetch model a/none: it has no model.safetensors or pytorch_model.bin"
    );
    server.add("models", "a/bare", "main", &[("README.md", b"")]);
    assert!(fetched("a/bare").unwrap_err().contains("it has no config.json"));
    let index = b"{\"weight_map\":{\"a\":\"../../x.safetensors\"}}";
    server.add("models", "a/evil", "main", &[("config.json", b"{}"), ("model.safetensors.index.json", index)]);
    assert!(
        fetched("a/evil").unwrap_err().contains("it names \"../../x.safetensors\", which is not in the repository")
    );
}
