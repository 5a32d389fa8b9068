//! Uploads to the hub: `create`, `preupload`, git LFS' `batch`, the contents (on the other server), `verify` and `commit`, as far
//! as `ngen3 export --push` uses them.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Access, Answer, Repository, Request, State, hex, is_large, plain, refuse};

#[derive(Default)]
pub struct Uploads {
    /// Bytes of large files, by their SHA-256.
    pub objects: BTreeMap<String, Vec<u8>>,
    parts: BTreeMap<(String, usize), Vec<u8>>,
    pub part_size: Option<usize>,
}

/// The only token with write access.
const WRITER: &str = "hf_writer";

pub fn receive(state: &mut State, request: &Request, other: bool) -> Answer {
    if other {
        assert!(!request.headers.contains_key("authorization"), "the other server must not receive a token");
        return keep(state, request);
    }
    if request.headers.get("authorization").is_none_or(|token| token != &format!("Bearer {WRITER}")) {
        return refuse(403, "", "You need write access");
    }
    let target = request.target.as_str();
    if target == "/api/repos/create" {
        return create(state, &json_of(request));
    }
    if let Some(oid) = target.strip_prefix("/complete/") {
        return complete(state, oid, &json_of(request));
    }
    if let Some(oid) = target.strip_prefix("/verify/") {
        let size = state.uploads.objects.get(oid).map(Vec::len);
        let said = json_of(request)["size"].as_u64().map(|size| size as usize);
        return if size == said { plain(200, &[], "{}") } else { refuse(422, "", "size mismatch") };
    }
    if target.ends_with(".git/info/lfs/objects/batch") {
        return batch(state, &json_of(request));
    }
    let Some((repository, action)) = target.strip_prefix("/api/models/").and_then(|rest| {
        let (rest, branch) = rest.rsplit_once('/')?;
        (branch == "main").then_some(())?;
        rest.rsplit_once('/')
    }) else {
        return refuse(404, "", "Not Found");
    };
    if !state.repositories.contains_key(&format!("models/{repository}")) {
        return refuse(404, "RepoNotFound", "Repository not found");
    }
    match action {
        "preupload" => preupload(&json_of(request)),
        "commit" => commit(state, repository, &request.body),
        _ => refuse(404, "", "Not Found"),
    }
}

fn json_of(request: &Request) -> Value {
    serde_json::from_slice(&request.body).unwrap()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn create(state: &mut State, body: &Value) -> Answer {
    assert_eq!(body["type"], "model");
    let name = format!("models/{}/{}", text(&body["organization"]), text(&body["name"]));
    if state.repositories.contains_key(&name) {
        return refuse(409, "", "You already created this model repo");
    }
    let access = if body["private"] == true { Access::Private(WRITER) } else { Access::Everyone };
    state.repositories.insert(name, Repository { access, revisions: BTreeMap::new() });
    plain(200, &[], "{}")
}

fn preupload(body: &Value) -> Answer {
    let files: Vec<Value> = body["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| {
            let path = text(&file["path"]);
            let sample = STANDARD.decode(text(&file["sample"])).unwrap();
            assert_eq!(sample.len() as u64, file["size"].as_u64().unwrap().min(512));
            let mode = if is_large(&path) { "lfs" } else { "regular" };
            json!({ "path": path, "uploadMode": mode, "shouldIgnore": path.ends_with(".tmp") })
        })
        .collect();
    plain(200, &[], json!({ "files": files }).to_string())
}

fn batch(state: &State, body: &Value) -> Answer {
    let objects: Vec<Value> = body["objects"]
        .as_array()
        .unwrap()
        .iter()
        .map(|object| {
            let (oid, size) = (text(&object["oid"]), object["size"].as_u64().unwrap() as usize);
            if state.uploads.objects.contains_key(&oid) {
                return json!({ "oid": oid, "size": size });
            }
            let other = &state.other_server;
            let upload = match state.uploads.part_size {
                None => json!({ "href": format!("{other}/put/{oid}") }),
                Some(part) => {
                    let mut header = json!({ "chunk_size": part.to_string() });
                    for i in 1..=size.div_ceil(part) {
                        header[format!("{i:05}")] = format!("{other}/part/{i}/{oid}").into();
                    }
                    json!({ "href": format!("{}/complete/{oid}", state.this_server), "header": header })
                }
            };
            let verify = json!({ "href": format!("{}/verify/{oid}", state.this_server) });
            json!({ "oid": oid, "size": size, "actions": { "upload": upload, "verify": verify } })
        })
        .collect();
    plain(200, &[], json!({ "transfer": "basic", "objects": objects }).to_string())
}

/// Stores the body of `/put/OID` or `/part/N/OID`.
fn keep(state: &mut State, request: &Request) -> Answer {
    let etag = format!("ETag: \"{}\"", hex(&Sha256::digest(&request.body)));
    if let Some(oid) = request.target.strip_prefix("/put/") {
        state.uploads.objects.insert(oid.into(), request.body.clone());
    } else {
        let (n, oid) = request.target.strip_prefix("/part/").unwrap().split_once('/').unwrap();
        state.uploads.parts.insert((oid.into(), n.parse().unwrap()), request.body.clone());
    }
    plain(200, &[etag], "")
}

fn complete(state: &mut State, oid: &str, body: &Value) -> Answer {
    let mut whole = Vec::new();
    for part in body["parts"].as_array().unwrap() {
        let n = part["partNumber"].as_u64().unwrap() as usize;
        let Some(bytes) = state.uploads.parts.get(&(oid.to_owned(), n)) else { return refuse(422, "", "part missing") };
        assert_eq!(text(&part["etag"]), format!("\"{}\"", hex(&Sha256::digest(bytes))));
        whole.extend(bytes);
    }
    state.uploads.objects.insert(oid.into(), whole);
    plain(200, &[], "{}")
}

fn commit(state: &mut State, repository: &str, body: &[u8]) -> Answer {
    let mut files = BTreeMap::new();
    for line in std::str::from_utf8(body).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let value = &line["value"];
        match line["key"].as_str().unwrap() {
            "header" => assert!(!text(&value["summary"]).is_empty()),
            "file" => {
                files.insert(text(&value["path"]), STANDARD.decode(text(&value["content"])).unwrap());
            }
            "lfsFile" => {
                let oid = text(&value["oid"]);
                let Some(bytes) = state.uploads.objects.get(&oid) else { return refuse(422, "", "object missing") };
                assert_eq!(oid, hex(&Sha256::digest(bytes)));
                files.insert(text(&value["path"]), bytes.clone());
            }
            other => panic!("{other}"),
        }
    }
    let oid = hex(&Sha256::digest(body))[..40].to_owned();
    let revisions = &mut state.repositories.get_mut(&format!("models/{repository}")).unwrap().revisions;
    revisions.insert("main".into(), (oid.clone(), files.clone()));
    revisions.insert(oid.clone(), (oid.clone(), files));
    plain(200, &[], json!({ "success": true, "commitOid": oid, "commitUrl": "" }).to_string())
}
