//! Uploads: a folder becomes one commit, or nothing.

use super::*;

/// A folder with a large file and two small ones.
fn export() -> (tempfile::TempDir, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("model.safetensors"), content()).unwrap();
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    fs::write(folder.path().join("notes.tmp"), "not for others").unwrap();
    (folder, ["config.json", "model.safetensors", "notes.tmp"].map(str::to_owned).to_vec())
}

fn push(hub: &Hub, folder: &Path, files: &[String]) -> Result<CommitInfo, String> {
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
        assert_eq!(there.keys().collect::<Vec<_>>(), ["config.json", "model.safetensors"], "the hub ignores notes.tmp");
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

    // A token that may write to this repository but not create any.
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
        let expected = "model.safetensors for model me/mine: the hub returned 503 Service Unavailable; retrying in 0ns";
        assert!(notes.iter().all(|note| note == expected), "{notes:?}");
    }
}
