//! The hub's client against a hub on loopback: what it fetches, what it keeps, and how it takes trouble.

mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ngen3_data::Error;
use ngen3_data::hub::{Env, Hub, Kind, Pushed, Snapshot};
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
    hub.open(Kind::Dataset, NAME, None, &mut |_| true)
}

fn fetch(snapshot: &Snapshot, path: &str) -> Result<PathBuf, String> {
    snapshot.fetch(path, &mut |_| true).map_err(|error| error.to_string())
}

/// Every file and link below a folder, as paths.
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
    assert!(others.len() == 1 && !others[0].contains("secret"), "a token goes to its own server only: {others:?}");
    assert!(ours.iter().all(|line| line.contains("token=Bearer hf_secret")), "{ours:?}");

    fetch(&open(&hub).unwrap(), "data/x.parquet").unwrap();
    assert_eq!(server.log().len(), 1, "what is there is not asked for again");
    // The same content at another commit is not fetched again either.
    server.add("datasets", NAME, "v2", &[("renamed.parquet", &content())]);
    let second = hub.open(Kind::Dataset, NAME, Some("v2"), &mut |_| true).unwrap();
    assert!(fs::read(fetch(&second, "renamed.parquet").unwrap()).unwrap() == content());
    assert!(!server.log().iter().any(|line| line.starts_with("other server")));

    let offline = offline(&server, cache.path());
    let snapshot = open(&offline).unwrap();
    assert!(snapshot.is_complete() && snapshot.commit() == commit && snapshot.files().len() == 3);
    assert!(fs::read(fetch(&snapshot, "data/x.parquet").unwrap()).unwrap() == content());
    let by_commit = offline.open(Kind::Dataset, NAME, Some(&commit), &mut |_| true).unwrap();
    assert_eq!(by_commit.files(), snapshot.files());
    assert!(server.log().is_empty(), "offline means offline");
}

#[test]
fn offline_only_what_was_fetched_is_there() {
    let (server, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
    let error = open(&offline(&server, cache.path())).unwrap_err().to_string();
    assert!(
        error.starts_with("cannot get dataset someone/something: HF_HUB_OFFLINE is set, and main is not in"),
        "{error}"
    );
    server.add("datasets", NAME, "main", &[("a.txt", b"a"), ("b.txt", b"b")]);
    fetch(&open(&hub(&server, cache.path(), None)).unwrap(), "a.txt").unwrap();
    let snapshot = open(&offline(&server, cache.path())).unwrap();
    fetch(&snapshot, "a.txt").unwrap();
    let error = fetch(&snapshot, "b.txt").unwrap_err();
    assert!(error.starts_with("cannot get b.txt of dataset someone/something: HF_HUB_OFFLINE is set"), "{error}");
    // Python's older caches have no listing: there it is not known what is missing.
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
        let snapshot = hub.open(Kind::Dataset, name, revision, &mut |_| true).unwrap();
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
        hub.open(Kind::Dataset, name, revision, &mut |_| true).unwrap_err().to_string()
    };
    let error = reason("someone/nothing", None, None);
    let expected = "cannot get dataset someone/nothing: the hub answered 401 Unauthorized: Invalid username or password (is \
                    the name right? if it is private, set HF_TOKEN to a token that may read it)";
    assert_eq!(error, expected);
    assert!(reason("someone/secret", None, None).contains("Invalid username or password (is"));
    let error = reason("someone/secret", None, Some("hf_wrong"));
    assert!(error.contains("404 Not Found: Repository not found (is the name right, and may the token"), "{error}");
    hub(&server, cache.path(), Some("hf_right")).open(Kind::Dataset, "someone/secret", None, &mut |_| true).unwrap();
    let error = reason(NAME, Some("v9"), None);
    assert!(error.ends_with("404 Not Found: Invalid rev id: v9 (is the revision right?)"), "{error}");

    server.restrict("datasets", NAME, Access::Gated);
    let error = fetch(&open(&hub(&server, cache.path(), None)).unwrap(), "a.txt").unwrap_err();
    let expected = "cannot get a.txt of dataset someone/something: the hub answered 403 Forbidden: Access to \
                    someone/something is restricted and you are not in the authorized list (ask for access on its page, \
                    then set HF_TOKEN to a token of yours)";
    assert_eq!(error, expected);

    for name in ["", "a/b/c", "../x", "a/..", "a b", "-a/b", "http://x"] {
        assert!(reason(name, None, None).contains("is neither a folder here nor the name of a dataset"), "{name:?}");
    }
    assert!(reason(NAME, Some("../../x"), None).contains("cannot be a branch"));
}

#[test]
fn a_broken_download_goes_on_where_it_broke_off() {
    let (server, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
    server.add("datasets", NAME, "main", &[("x.parquet", &content()), ("y.txt", &content())]);
    let snapshot = open(&hub(&server, cache.path(), None)).unwrap();
    for (path, part, fault) in
        [("x.parquet", "/other/", Fault::Drop(500_000)), ("y.txt", "y.txt", Fault::Drop(700_000))]
    {
        server.log();
        server.fault(part, 2, fault);
        let mut notes = Vec::new();
        let kept = snapshot.fetch(path, &mut |event| {
            if let Event::Note(note) = event {
                notes.push(note);
            }
            true
        });
        assert!(fs::read(kept.unwrap()).unwrap() == content(), "{path}");
        let log = server.log();
        assert!(log.iter().any(|line| line.contains("Range=bytes=")), "{log:#?}");
        assert!(notes[0].contains("the connection broke after ") && notes[0].contains("trying again"), "{notes:?}");
    }
    assert!(!below(cache.path()).iter().any(|path| path.ends_with(".incomplete")));
}

#[test]
fn the_next_run_goes_on_and_does_not_trust_what_it_finds() {
    let (server, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
    server.add("datasets", NAME, "main", &[("x.parquet", &content())]);
    let snapshot = open(&hub(&server, cache.path(), None)).unwrap();
    let mut stop = |event| !matches!(event, Event::Downloading { done: 1.., .. });
    assert!(matches!(snapshot.fetch("x.parquet", &mut stop), Err(Error::Interrupted)));
    let left = below(cache.path()).into_iter().find(|path| path.ends_with(".incomplete")).unwrap();
    let left = cache.path().join(left);
    assert!((1..1_200_000).contains(&fs::metadata(&left).unwrap().len()));
    assert!(!snapshot.folder().join("x.parquet").exists());

    let mut part = content()[..400_000].to_vec();
    for (damage, ranges) in [(false, 1), (true, 1)] {
        if damage {
            part[7] ^= 1;
            fs::remove_dir_all(snapshot.folder()).unwrap();
            fs::remove_dir_all(left.parent().unwrap()).unwrap();
            fs::create_dir_all(left.parent().unwrap()).unwrap();
        }
        fs::write(&left, &part).unwrap();
        server.log();
        assert!(fs::read(fetch(&snapshot, "x.parquet").unwrap()).unwrap() == content());
        let log = server.log();
        let found = log.iter().filter(|line| line.starts_with("GET") && line.contains("Range=bytes=400000-")).count();
        assert_eq!(found, ranges, "{log:#?}");
        assert!(!left.exists());
    }
}

/// Nobody listens there.
const NOWHERE: Fault = Fault::Answer(302, "Location: http://127.0.0.1:1/gone", "");

#[test]
fn what_came_is_kept_when_the_network_goes_away() {
    let (server, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
    server.add("datasets", NAME, "main", &[("x.parquet", &content())]);
    let snapshot = open(&hub(&server, cache.path(), None)).unwrap();
    let half = || below(cache.path()).into_iter().find(|path| path.ends_with(".incomplete"));
    let size = |path: String| fs::metadata(cache.path().join(path)).unwrap().len();
    let drop_then_nowhere = |times| {
        // The first time all is well until the connection breaks.
        server.fault("/resolve/", 1, Fault::Drop(usize::MAX));
        server.fault("/other/", 1, Fault::Drop(500_000));
        server.fault("/resolve/", times, NOWHERE);
    };
    // Away for long: whoever gives up waiting finds the part there.
    drop_then_nowhere(20);
    let mut notes = Vec::new();
    let stopped = snapshot.fetch("x.parquet", &mut |event| {
        if let Event::Note(note) = event {
            notes.push(note);
        }
        notes.len() < 2
    });
    assert!(matches!(stopped, Err(Error::Interrupted)));
    assert!(notes[1].contains("refused") && notes[1].contains("trying again"), "{notes:?}");
    let had = size(half().unwrap());
    assert!(had > 0);
    // A hub that says no for another reason takes nothing away either.
    server.heal();
    server.fault("/other/", 1, Fault::Answer(403, "", ""));
    let error = fetch(&snapshot, "x.parquet").unwrap_err();
    assert!(error.contains("403") && error.ends_with("bytes that came are kept for the next try"), "{error}");
    assert_eq!(size(half().unwrap()), had);
    server.log();
    assert!(fs::read(fetch(&snapshot, "x.parquet").unwrap()).unwrap() == content());
    assert!(server.log().iter().any(|line| line.contains(&format!("Range=bytes={had}-"))));

    // Away for a moment: the same run goes on.
    let cache = tempfile::tempdir().unwrap();
    let snapshot = open(&hub(&server, cache.path(), None)).unwrap();
    drop_then_nowhere(1);
    assert!(fs::read(fetch(&snapshot, "x.parquet").unwrap()).unwrap() == content());
    let ranges = server.log().iter().filter(|line| line.starts_with("other") && line.contains("Range=")).count();
    assert_eq!(ranges, 1);

    // Nothing has come yet: there is nothing to wait for.
    let cache = tempfile::tempdir().unwrap();
    let snapshot = open(&hub(&server, cache.path(), None)).unwrap();
    server.fault("/resolve/", 1, NOWHERE);
    let error = fetch(&snapshot, "x.parquet").unwrap_err();
    assert!(error.ends_with("(is there a network? HF_HUB_OFFLINE=1 uses what is in the cache)"), "{error}");
}

#[test]
fn a_part_with_nothing_after_it_is_the_whole_or_is_fetched_anew() {
    let (server, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
    server.add("datasets", NAME, "main", &[("x.parquet", &content())]);
    let snapshot = open(&hub(&server, cache.path(), None)).unwrap();
    let kept = fetch(&snapshot, "x.parquet").unwrap();
    let blob = fs::canonicalize(&kept).unwrap();
    let half = format!("{}.incomplete", blob.display());
    let fetched_from = |part: &[u8]| {
        fs::remove_file(&kept).unwrap();
        fs::remove_file(&blob).unwrap();
        fs::write(&half, part).unwrap();
        server.log();
        assert!(fs::read(fetch(&snapshot, "x.parquet").unwrap()).unwrap() == content());
        let log = server.log();
        log.iter().filter(|line| line.starts_with("other")).map(|line| line.contains("Range=")).collect::<Vec<_>>()
    };
    server.fault("/other/", 1, Fault::Answer(416, "", ""));
    assert_eq!(fetched_from(&content()[..400_000]), [true, false], "the server did not want to go on");
    server.hide_sizes();
    assert_eq!(fetched_from(&content()), [true], "it was all there");
    assert_eq!(fetched_from(&[&content()[..], b"more"].concat()), [true, false], "it was something else");
}

/// Whatever goes wrong, and however the attempt ends: no name but `blobs/ETAG.incomplete` holds part of a file, that one only
/// what a later attempt goes on with, and then nothing is left of it.
#[test]
fn after_each_fault_the_cache_holds_no_half_file() {
    let whole = content();
    for (fault, times) in [
        (Fault::Drop(500_000), 1),
        (Fault::Drop(500_000), 20),
        (Fault::Drop(0), 20),
        (Fault::Short(9), 1),
        (Fault::Short(1_199_999), 1),
        (Fault::Flip, 1),
        (Fault::NoRanges, 20),
        (Fault::Stall(400_000), 1),
        (Fault::Stall(400_000), 20),
        (Fault::Answer(429, "Retry-After: 0", ""), 2),
        (Fault::Answer(429, "Retry-After: 0", ""), 20),
        (Fault::Answer(503, "Retry-After: 4000", ""), 1),
        (Fault::Answer(200, "", "something else"), 1),
        (Fault::Answer(206, "Content-Range: bytes 0-13/14", "something else"), 20),
    ] {
        for path in ["x.parquet", "y.txt"] {
            if path == "y.txt" && matches!(fault, Fault::Flip) {
                // A small file's ETag is git's, which is not checked, as in Python's client.
                continue;
            }
            let (server, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
            server.add("datasets", NAME, "main", &[("x.parquet", &whole), ("y.txt", &whole)]);
            let (endpoint, cache_folder) = (server.endpoint.clone(), cache.path().into());
            let timeout = Duration::from_millis(300);
            let hub = Hub::new(Env { endpoint, cache: cache_folder, token: None, offline: false, timeout });
            let snapshot = open(&hub).unwrap();
            let label = format!("{fault:?}, {times} times, {path}");
            let part = if path == "x.parquet" { "/other/" } else { "/resolve/" };
            server.fault(part, times, fault.clone());
            // The waits between attempts are cut short by giving up at the second.
            let mut notes = 0;
            let outcome = snapshot.fetch(path, &mut |event| {
                notes += usize::from(matches!(event, Event::Note(_)));
                notes < 2
            });
            let kept = snapshot.folder().join(path);
            let is_half = |file: &String| file.ends_with(".incomplete");
            let mut halves = below(cache.path()).into_iter().filter(is_half);
            let half = halves.next().map(|half| fs::read(cache.path().join(half)).unwrap());
            assert!(halves.next().is_none(), "{label}");
            match outcome {
                Ok(found) => assert!(fs::read(found).unwrap() == whole && half.is_none(), "{label}"),
                Err(_) => {
                    assert!(kept.symlink_metadata().is_err(), "{label}");
                    let blobs = |file: &String| file.contains("blobs/") && !file.ends_with(".incomplete");
                    assert!(!below(cache.path()).iter().any(blobs), "{label}");
                }
            }
            if let Some(half) = &half {
                assert!(path == "x.parquet" && !half.is_empty() && whole.starts_with(half), "{label}");
            }
            server.heal();
            server.log();
            assert!(fs::read(fetch(&snapshot, path).unwrap()).unwrap() == whole, "{label}");
            let resumed = half.map(|half| format!("Range=bytes={}-", half.len()));
            let log = server.log();
            assert!(resumed.is_none_or(|range| log.iter().any(|line| line.contains(&range))), "{label}: {log:#?}");
            assert!(!below(cache.path()).iter().any(is_half), "{label}");
        }
    }
}

/// What is left of a file that no hash will check might be anything, so it is not gone on with.
#[test]
fn a_small_file_that_was_left_half_is_fetched_anew() {
    let (server, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
    server.add("datasets", NAME, "main", &[("y.txt", b"text")]);
    let snapshot = open(&hub(&server, cache.path(), None)).unwrap();
    let kept = fetch(&snapshot, "y.txt").unwrap();
    let blob = fs::canonicalize(&kept).unwrap();
    for left in ["te", "xx", "xxxx", "text and more"] {
        fs::remove_file(&kept).unwrap();
        fs::remove_file(&blob).unwrap();
        fs::write(format!("{}.incomplete", blob.display()), left).unwrap();
        assert_eq!(fs::read(fetch(&snapshot, "y.txt").unwrap()).unwrap(), b"text", "{left}");
        assert!(!below(cache.path()).iter().any(|path| path.ends_with(".incomplete")));
    }
}

#[test]
fn passing_trouble_is_waited_out() {
    let (server, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
    server.add("datasets", NAME, "main", &[("x.parquet", &content()), ("s.txt", b"slow but sure")]);
    let hub = hub(&server, cache.path(), None);
    server.fault("/api/", 1, Fault::Answer(429, "Retry-After: 0", "{\"error\":\"Too many requests\"}"));
    server.fault("/api/", 1, Fault::Answer(503, "", ""));
    let mut notes = Vec::new();
    let snapshot = hub.open(Kind::Dataset, NAME, None, &mut |event| {
        if let Event::Note(note) = event {
            notes.push(note);
        }
        true
    });
    assert!(notes[0].contains("429 Too Many Requests: Too many requests; trying again in 0ns"), "{notes:?}");
    assert!(notes[1].contains("503 Service Unavailable; trying again"), "{notes:?}");
    let snapshot = snapshot.unwrap();
    server.fault("resolve", 1, Fault::Answer(500, "", ""));
    server.fault("/other/", 1, Fault::Answer(502, "", ""));
    assert!(fs::read(fetch(&snapshot, "x.parquet").unwrap()).unwrap() == content());
    server.fault("s.txt", 1, Fault::Slow(Duration::from_millis(1)));
    assert_eq!(fs::read(fetch(&snapshot, "s.txt").unwrap()).unwrap(), b"slow but sure");

    server.fault("/api/", 1, Fault::Answer(429, "Retry-After: 4000", ""));
    let error = open(&hub).unwrap_err().to_string();
    assert!(error.ends_with("429 Too Many Requests (it asks us to come back in 4000 s)"), "{error}");
    server.fault("/api/", 1, Fault::Answer(429, "Retry-After: 200", ""));
    let stopped = hub.open(Kind::Dataset, NAME, None, &mut |event| !matches!(event, Event::Downloading { .. }));
    assert!(matches!(stopped, Err(Error::Interrupted)), "a wait can be ended");
}

#[test]
fn a_hub_that_lies_is_found_out_and_leaves_nothing() {
    let (server, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
    server.add("datasets", NAME, "main", &[("x.parquet", &content()), ("y.txt", b"text")]);
    let snapshot = open(&hub(&server, cache.path(), None)).unwrap();
    let check = |path: &str, part: &str, fault: Fault, reason: &str| {
        let times = if reason == "circles" { 11 } else { 1 };
        server.fault(part, times, fault);
        let error = fetch(&snapshot, path).unwrap_err();
        assert!(error.contains(reason), "{error}");
        let left = below(cache.path());
        assert!(!left.iter().any(|path| path.contains("blobs") || path.contains("snapshots")), "{left:?}");
    };
    check("x.parquet", "/other/", Fault::Flip, "not what the hub promised (its SHA-256 differs)");
    check("x.parquet", "/other/", Fault::Short(9), "promised 1200000 bytes, but the server has 1199991");
    check("y.txt", "resolve", Fault::Short(1), "promised 4 bytes, but the server has 3");
    check("y.txt", "resolve", Fault::Answer(200, "", "much longer"), "promised 4 bytes, but the server has 11");
    check("x.parquet", "/other/", Fault::Answer(404, "", ""), "404 Not Found");
    check(
        "x.parquet",
        "resolve",
        Fault::Answer(302, "Location: file:///etc/passwd", ""),
        "to a place that is no address",
    );
    check(
        "x.parquet",
        "resolve",
        Fault::Answer(302, "Location: /datasets/someone/something/resolve/main/x.parquet", ""),
        "circles",
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
        assert!(error.contains("would lead out of the cache; refused"), "{path}: {error}");
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
    assert_eq!(fetched("gpt2").unwrap(), expected, "safetensors are preferred, and nothing needless comes");

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
        "cannot get model a/none: it has no model.safetensors and no pytorch_model.bin"
    );
    server.add("models", "a/bare", "main", &[("README.md", b"")]);
    assert!(fetched("a/bare").unwrap_err().contains("it has no config.json"));
    let index = b"{\"weight_map\":{\"a\":\"../../x.safetensors\"}}";
    server.add("models", "a/evil", "main", &[("config.json", b"{}"), ("model.safetensors.index.json", index)]);
    assert!(
        fetched("a/evil").unwrap_err().contains("it names \"../../x.safetensors\", which the repository does not have")
    );
}

/// A folder with a large file and two small ones.
fn export() -> (tempfile::TempDir, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("model.safetensors"), content()).unwrap();
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    fs::write(folder.path().join("notes.tmp"), "not for others").unwrap();
    (folder, ["config.json", "model.safetensors", "notes.tmp"].map(str::to_owned).to_vec())
}

fn push(hub: &Hub, folder: &Path, files: &[String]) -> Result<Pushed, String> {
    hub.push("me/mine", folder, files, false, "a model", &mut |_| true).map_err(|error| error.to_string())
}

#[test]
fn a_folder_arrives_as_one_commit_and_large_files_are_sent_once() {
    for parts in [None, Some(500_000)] {
        let (server, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
        if let Some(bytes) = parts {
            server.in_parts(bytes);
        }
        let (folder, files) = export();
        let hub = hub(&server, cache.path(), Some("hf_writer"));
        let pushed = push(&hub, folder.path(), &files).unwrap();
        assert_eq!(pushed.url, format!("{}/me/mine", server.endpoint));
        assert_eq!(pushed.commit.unwrap().len(), 40);
        let there = server.files("models", "me/mine");
        assert_eq!(there.keys().collect::<Vec<_>>(), ["config.json", "model.safetensors"], "the hub ignores the other");
        assert!(there["model.safetensors"] == content() && there["config.json"] == b"{}");
        let puts = |log: Vec<String>| log.iter().filter(|line| line.contains("PUT")).count();
        assert_eq!(puts(server.log()), if parts.is_some() { 3 } else { 1 });

        fs::write(folder.path().join("config.json"), "{\"new\": 1}").unwrap();
        push(&hub, folder.path(), &files).unwrap();
        assert_eq!(server.files("models", "me/mine")["config.json"], b"{\"new\": 1}");
        assert_eq!(puts(server.log()), 0, "the hub has these bytes");
    }
}

#[test]
fn an_upload_goes_on_after_trouble_and_a_refusal_leaves_nothing() {
    let (server, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
    let (folder, files) = export();
    let writer = hub(&server, cache.path(), Some("hf_writer"));
    server.fault("/put/", 1, Fault::Answer(503, "Retry-After: 0", ""));
    server.fault("/preupload/", 1, Fault::Answer(429, "Retry-After: 0", ""));
    push(&writer, folder.path(), &files).unwrap();
    assert_eq!(server.files("models", "me/mine")["model.safetensors"], content());

    // A token that may write to this repository, and make none.
    let create = || server.fault("/repos/create", 1, Fault::Answer(403, "", "{\"error\":\"You may not make any\"}"));
    create();
    push(&writer, folder.path(), &files).unwrap();
    create();
    let error = writer.push("me/new", folder.path(), &files, false, "a model", &mut |_| true).unwrap_err().to_string();
    assert!(error.contains("403") && error.contains("You may not make any"), "{error}");

    let reader = hub(&server, cache.path(), Some("hf_reader"));
    let error = push(&reader, folder.path(), &files).unwrap_err();
    assert!(error.contains("model me/mine") && error.contains("403") && error.contains("write access"), "{error}");
    let error = push(&hub(&server, cache.path(), None), folder.path(), &files).unwrap_err();
    assert!(error.contains("set HF_TOKEN"), "{error}");
    let error = push(&offline(&server, cache.path()), folder.path(), &files).unwrap_err();
    assert!(error.contains("HF_HUB_OFFLINE"), "{error}");
    let error = writer.push("mine", folder.path(), &files, false, "a model", &mut |_| true).unwrap_err().to_string();
    assert!(error.contains("OWNER/NAME"), "{error}");
    let outside = ["../secret".to_owned()];
    assert!(push(&writer, folder.path(), &outside).unwrap_err().contains("../secret"));
    let missing = ["missing.json".to_owned()];
    assert!(push(&writer, folder.path(), &missing).unwrap_err().contains("missing.json"));

    let stopped = writer.push("me/other", folder.path(), &files, true, "a model", &mut |event| {
        !matches!(event, Event::Downloading { .. })
    });
    assert!(matches!(stopped, Err(Error::Interrupted)));
    assert!(server.files("models", "me/other").is_empty(), "nothing is committed");
}

#[test]
fn an_upload_tells_what_it_waits_for_and_can_be_ended_then() {
    for (part, in_parts) in [("/put/", false), ("/part/", true), ("/complete/", true), ("/verify/", false)] {
        let (server, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
        if in_parts {
            server.in_parts(500_000);
        }
        let (folder, files) = export();
        let writer = hub(&server, cache.path(), Some("hf_writer"));
        let mut notes = Vec::new();
        let mut push = |goes_on: bool| {
            server.fault(part, 1, Fault::Answer(503, "Retry-After: 0", ""));
            writer.push("me/mine", folder.path(), &files, false, "a model", &mut |event| {
                let is_note = matches!(event, Event::Note(_));
                if let Event::Note(note) = event {
                    notes.push(note);
                }
                goes_on || !is_note
            })
        };
        assert!(matches!(push(false), Err(Error::Interrupted)), "{part}");
        assert!(server.files("models", "me/mine").is_empty());
        push(true).unwrap();
        assert_eq!(notes.len(), if part == "/verify/" { 1 } else { 2 }, "{part}: {notes:?}");
        let expected =
            "model.safetensors for model me/mine: the hub answered 503 Service Unavailable; trying again in 0ns";
        assert!(notes.iter().all(|note| note == expected), "{notes:?}");
    }
}
