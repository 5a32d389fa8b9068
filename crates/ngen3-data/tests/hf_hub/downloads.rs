//! Interrupted downloads and the files they leave behind.

use super::*;

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
        assert!(notes[0].contains("connection lost after ") && notes[0].contains("retrying in"), "{notes:?}");
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

/// A redirect to a port where nothing listens.
const NOWHERE: Fault = Fault::Answer(302, "Location: http://127.0.0.1:1/gone", "");

#[test]
fn what_came_is_kept_when_the_network_goes_away() {
    let (server, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
    server.add("datasets", NAME, "main", &[("x.parquet", &content())]);
    let snapshot = open(&hub(&server, cache.path(), None)).unwrap();
    let half = || below(cache.path()).into_iter().find(|path| path.ends_with(".incomplete"));
    let size = |path: String| fs::metadata(cache.path().join(path)).unwrap().len();
    let drop_then_nowhere = |times| {
        // All is well at first, until the connection breaks.
        server.fault("/resolve/", 1, Fault::Drop(usize::MAX));
        server.fault("/other/", 1, Fault::Drop(500_000));
        server.fault("/resolve/", times, NOWHERE);
    };
    // Away for long: after an early stop the partial file is still there.
    drop_then_nowhere(20);
    let mut notes = Vec::new();
    let stopped = snapshot.fetch("x.parquet", &mut |event| {
        if let Event::Note(note) = event {
            notes.push(note);
        }
        notes.len() < 2
    });
    assert!(matches!(stopped, Err(Error::Interrupted)));
    assert!(notes[1].contains("refused") && notes[1].contains("retrying in"), "{notes:?}");
    let had = size(half().unwrap());
    assert!(had > 0);
    // A hub that refuses for another reason removes nothing either.
    server.heal();
    server.fault("/other/", 1, Fault::Answer(403, "", ""));
    let error = fetch(&snapshot, "x.parquet").unwrap_err();
    assert!(error.contains("403") && error.ends_with("bytes received are kept for the next attempt"), "{error}");
    assert_eq!(size(half().unwrap()), had);
    server.log();
    assert!(fs::read(fetch(&snapshot, "x.parquet").unwrap()).unwrap() == content());
    assert!(server.log().iter().any(|line| line.contains(&format!("Range=bytes={had}-"))));

    // Away for a moment: the same run resumes.
    let cache = tempfile::tempdir().unwrap();
    let snapshot = open(&hub(&server, cache.path(), None)).unwrap();
    drop_then_nowhere(1);
    assert!(fs::read(fetch(&snapshot, "x.parquet").unwrap()).unwrap() == content());
    let ranges = server.log().iter().filter(|line| line.starts_with("other") && line.contains("Range=")).count();
    assert_eq!(ranges, 1);

    // Nothing was received yet: an unreachable server is an error at once.
    let cache = tempfile::tempdir().unwrap();
    let snapshot = open(&hub(&server, cache.path(), None)).unwrap();
    server.fault("/resolve/", 1, NOWHERE);
    let error = fetch(&snapshot, "x.parquet").unwrap_err();
    let hint = "(check the network connection, or set HF_HUB_OFFLINE=1 to use the cache)";
    assert!(error.ends_with(hint), "{error}");
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
    assert_eq!(fetched_from(&content()[..400_000]), [true, false], "the server refuses to resume");
    server.hide_sizes();
    assert_eq!(fetched_from(&content()), [true], "the whole file was there");
    assert_eq!(fetched_from(&[&content()[..], b"more"].concat()), [true, false], "it was another file");
}

/// Whatever goes wrong, and however the attempt ends: only `blobs/ETAG.incomplete` holds part of a file, only if a later attempt
/// resumes it, and then nothing is left of it.
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
            // The waits between attempts are skipped by giving up at the second.
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

/// A partial file that no hash will verify might be anything, so it is not resumed.
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
    let snapshot = hub.open(RepoKind::Dataset, NAME, None, &mut |event| {
        if let Event::Note(note) = event {
            notes.push(note);
        }
        true
    });
    assert!(notes[0].contains("429 Too Many Requests: Too many requests; retrying in 0ns"), "{notes:?}");
    assert!(notes[1].contains("503 Service Unavailable; retrying in"), "{notes:?}");
    let snapshot = snapshot.unwrap();
    server.fault("resolve", 1, Fault::Answer(500, "", ""));
    server.fault("/other/", 1, Fault::Answer(502, "", ""));
    assert!(fs::read(fetch(&snapshot, "x.parquet").unwrap()).unwrap() == content());
    server.fault("s.txt", 1, Fault::Slow(Duration::from_millis(1)));
    assert_eq!(fs::read(fetch(&snapshot, "s.txt").unwrap()).unwrap(), b"slow but sure");

    server.fault("/api/", 1, Fault::Answer(429, "Retry-After: 4000", ""));
    let error = open(&hub).unwrap_err().to_string();
    assert!(error.ends_with("429 Too Many Requests (the server asks to retry after 4000 s)"), "{error}");
    server.fault("/api/", 1, Fault::Answer(429, "Retry-After: 200", ""));
    let stopped = hub.open(RepoKind::Dataset, NAME, None, &mut |event| !matches!(event, Event::Downloading { .. }));
    assert!(matches!(stopped, Err(Error::Interrupted)), "a wait can be interrupted");
}
