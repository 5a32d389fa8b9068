//! A hub on loopback, for tests: it implements the part of the Hugging Face hub's API that lists and downloads files.
//!
//! `GET /api/{models,datasets}/NAME[/revision/REV]` returns a commit and its files; `/[datasets/]NAME/resolve/REV/PATH` returns a
//! file: small ones itself, large ones (`LARGE` extensions) by a redirect to a second server, as the real one does with its
//! content delivery network, which must never receive a token. Both support ranges. [`FakeHub::fault`] injects faults.
//! `uploads.rs` handles uploads.
#![allow(dead_code)]

#[path = "uploads.rs"]
mod uploads;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use sha2::{Digest, Sha256};

/// Extensions of files that are stored elsewhere, named by their SHA-256.
const LARGE: [&str; 4] = [".parquet", ".arrow", ".safetensors", ".bin"];

/// An injected fault.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The connection closes after this many bytes of the body.
    Drop(usize),
    /// This many bytes are missing at the end, and the Content-Length says so.
    Short(usize),
    /// Every byte is sent alone, after a pause.
    Slow(Duration),
    /// After this many bytes of the body nothing more is sent, for longer than any timeout.
    Stall(usize),
    /// The first byte of the body is wrong.
    Flip,
    /// The response has this status, these headers and this body.
    Answer(u16, &'static str, &'static str),
    /// A range request returns the whole file.
    NoRanges,
}

/// Read access to a repository.
#[derive(Clone, PartialEq)]
pub enum Access {
    Everyone,
    /// Only with this token; to others the repository does not exist.
    Private(&'static str),
    /// Nobody; others are told to request access.
    Gated,
}

struct Repository {
    access: Access,
    /// Branches, tags and commits, each with its commit and files.
    revisions: BTreeMap<String, (String, BTreeMap<String, Vec<u8>>)>,
}

#[derive(Default)]
struct State {
    repositories: BTreeMap<String, Repository>,
    moved: BTreeMap<String, String>,
    faults: Vec<(String, usize, Fault)>,
    log: Vec<String>,
    /// True if the size of large files is not returned.
    hides_sizes: bool,
    this_server: String,
    other_server: String,
    uploads: uploads::Uploads,
}

/// The server; it runs until the test's process ends.
pub struct FakeHub {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
}

struct Request {
    method: String,
    target: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl FakeHub {
    pub fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let endpoint = listen(&state, false);
        let other = listen(&state, true);
        {
            let mut state = state.lock().unwrap();
            (state.this_server, state.other_server) = (endpoint.clone(), other);
        }
        Self { endpoint, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Adds a revision of a repository: `kind` is `models` or `datasets`. Returns its commit.
    pub fn add(&self, kind: &str, name: &str, revision: &str, files: &[(&str, &[u8])]) -> String {
        let files: BTreeMap<_, _> = files.iter().map(|(path, bytes)| (path.to_string(), bytes.to_vec())).collect();
        let mut hash = Sha256::new();
        hash.update(format!("{name} {revision}"));
        for (path, bytes) in &files {
            hash.update(path);
            hash.update(bytes);
        }
        let commit = hex(&hash.finalize())[..40].to_owned();
        let mut state = self.state();
        let repository = state
            .repositories
            .entry(format!("{kind}/{name}"))
            .or_insert_with(|| Repository { access: Access::Everyone, revisions: BTreeMap::new() });
        repository.revisions.insert(revision.into(), (commit.clone(), files.clone()));
        repository.revisions.insert(commit.clone(), (commit.clone(), files));
        commit
    }

    pub fn restrict(&self, kind: &str, name: &str, access: Access) {
        self.state().repositories.get_mut(&format!("{kind}/{name}")).unwrap().access = access;
    }

    /// Redirects requests for the first name to the second.
    pub fn rename(&self, from: &str, to: &str) {
        self.state().moved.insert(from.into(), to.into());
    }

    /// Requests large files in parts of so many bytes from now on.
    pub fn in_parts(&self, bytes: usize) {
        self.state().uploads.part_size = Some(bytes);
    }

    /// Stops returning the size of large files.
    pub fn hide_sizes(&self) {
        self.state().hides_sizes = true;
    }

    /// Returns the files of a repository's main branch.
    pub fn files(&self, kind: &str, name: &str) -> BTreeMap<String, Vec<u8>> {
        let state = self.state();
        let repository = state.repositories.get(&format!("{kind}/{name}"));
        repository.and_then(|found| found.revisions.get("main")).map(|(_, files)| files.clone()).unwrap_or_default()
    }

    /// Injects a fault into the next `times` responses to GETs, POSTs and PUTs whose URL contains `part`.
    pub fn fault(&self, part: &str, times: usize, fault: Fault) {
        self.state().faults.push((part.into(), times, fault));
    }

    /// Removes all faults.
    pub fn heal(&self) {
        self.state().faults.clear();
    }

    /// Returns the requests since the last call: `METHOD URL`, and `Range` and `token` if they were given.
    pub fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.state().log)
    }
}

/// Serves on its own port; returns the URL.
fn listen(state: &Arc<Mutex<State>>, other: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let state = Arc::clone(state);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let state = Arc::clone(&state);
            // A client that disconnects does not fail the test.
            std::thread::spawn(move || serve(stream, &state, other).ok());
        }
    });
    address
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut lines = reader.by_ref().lines().map_while(Result::ok);
    let first = lines.next()?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, target) = (words.next()?, words.next()?);
    let headers: BTreeMap<String, String> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())))
        .collect();
    let mut body = vec![0; headers.get("content-length").map_or(0, |length| length.parse().unwrap())];
    reader.read_exact(&mut body).ok()?;
    Some(Request { method, target, headers, body })
}

fn serve(mut stream: TcpStream, state: &Mutex<State>, other: bool) -> std::io::Result<()> {
    let Some(request) = read_request(&stream) else { return Ok(()) };
    let mut state = state.lock().unwrap();
    let mut line = format!("{} {}", request.method, request.target);
    for (header, shown) in [("range", "Range"), ("authorization", "token")] {
        if let Some(value) = request.headers.get(header) {
            line += &format!(" {shown}={value}");
        }
    }
    state.log.push(if other { format!("other server: {line}") } else { line });
    let fault =
        match state.faults.iter().position(|(part, ..)| request.method != "HEAD" && request.target.contains(part)) {
            Some(at) => {
                let fault = state.faults[at].2.clone();
                state.faults[at].1 -= 1;
                if state.faults[at].1 == 0 {
                    state.faults.remove(at);
                }
                Some(fault)
            }
            None => None,
        };
    let answer = match (&*request.method, other) {
        // Faults of uploads take effect before anything is stored.
        ("POST" | "PUT", _) if fault.is_some() => plain(200, &[], "{}"),
        ("POST" | "PUT", _) => uploads::receive(&mut state, &request, other),
        (_, true) => large(&state, &request),
        (_, false) => answer(&state, &request),
    };
    drop(state);
    let Answer { mut status, mut headers, mut body } = answer;
    let mut cut = None;
    match fault {
        Some(Fault::Answer(code, more, text)) => {
            (status, headers, body) = (code, vec![more.to_owned()], text.as_bytes().to_vec());
        }
        Some(Fault::Short(n)) => body.truncate(body.len() - n),
        Some(Fault::Flip) => body[0] ^= 1,
        Some(Fault::Drop(n)) => cut = Some(n),
        Some(Fault::NoRanges | Fault::Slow(_) | Fault::Stall(_)) | None => {}
    }
    let range = request.headers.get("range").filter(|_| status == 200 && !matches!(fault, Some(Fault::NoRanges)));
    if let Some(start) = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok())
    {
        if start >= body.len() {
            (status, body) = (416, Vec::new());
        } else {
            status = 206;
            headers.push(format!("Content-Range: bytes {start}-{}/{}", body.len() - 1, body.len()));
            body.drain(..start);
        }
    }
    write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n", body.len())?;
    for header in headers.iter().filter(|header| !header.is_empty()) {
        write!(stream, "{header}\r\n")?;
    }
    write!(stream, "\r\n")?;
    if request.method == "HEAD" {
        return Ok(());
    }
    match fault {
        Some(Fault::Slow(pause)) => body.iter().try_for_each(|byte| {
            std::thread::sleep(pause);
            stream.write_all(&[*byte]).and_then(|()| stream.flush())
        }),
        Some(Fault::Stall(n)) => {
            stream.write_all(&body[..n.min(body.len())])?;
            std::thread::sleep(Duration::from_secs(60));
            Ok(())
        }
        _ => stream.write_all(&body[..cut.unwrap_or(body.len()).min(body.len())]),
    }
}

struct Answer {
    status: u16,
    headers: Vec<String>,
    body: Vec<u8>,
}

fn plain(status: u16, headers: &[String], body: impl Into<Vec<u8>>) -> Answer {
    Answer { status, headers: headers.to_vec(), body: body.into() }
}

fn refuse(status: u16, code: &str, message: &str) -> Answer {
    let headers = [format!("X-Error-Code: {code}"), format!("X-Error-Message: {message}")];
    plain(status, &headers, format!("{{\"error\":\"{message}\"}}"))
}

/// Parses `/api/KIND/NAME/revision/REV` or `/[datasets/]NAME/resolve/REV/PATH` into repository, revision and path.
fn parse(target: &str) -> Option<(String, String, Option<String>)> {
    let target = target.split('?').next()?.strip_prefix('/')?;
    if let Some(rest) = target.strip_prefix("api/") {
        let (repository, revision) = rest.split_once("/revision/").unwrap_or((rest, "main"));
        return Some((repository.into(), decode(revision), None));
    }
    let (repository, rest) = target.split_once("/resolve/")?;
    let (revision, path) = rest.split_once('/')?;
    let repository =
        if repository.starts_with("datasets/") { repository.into() } else { format!("models/{repository}") };
    Some((repository, decode(revision), Some(decode(path))))
}

fn answer(state: &State, request: &Request) -> Answer {
    for (from, to) in &state.moved {
        if request.target.contains(from) {
            return plain(307, &[format!("Location: {}", request.target.replace(from, to))], "");
        }
    }
    let Some((name, revision, path)) = parse(&request.target) else { return refuse(404, "", "Not Found") };
    let token = request.headers.get("authorization").and_then(|value| value.strip_prefix("Bearer "));
    let missing = || match token {
        Some(_) => refuse(404, "RepoNotFound", "Repository not found"),
        None => refuse(401, "RepoNotFound", "Invalid username or password."),
    };
    let Some(repository) = state.repositories.get(&name) else { return missing() };
    match &repository.access {
        Access::Private(secret) if token != Some(*secret) => return missing(),
        Access::Gated if path.is_some() => {
            let name = name.split_once('/').unwrap().1;
            let message = format!("Access to {name} is restricted and you are not in the authorized list.");
            return refuse(403, "GatedRepo", &message);
        }
        _ => {}
    }
    let Some((commit, files)) = repository.revisions.get(&revision) else {
        return refuse(404, "RevisionNotFound", &format!("Invalid rev id: {revision}"));
    };
    let Some(path) = path else {
        let files: Vec<_> = files.iter().map(|(path, bytes)| sibling(path, bytes)).collect();
        return plain(200, &[], format!("{{\"sha\":\"{commit}\",\"siblings\":[{}]}}", files.join(",")));
    };
    let Some(bytes) = files.get(&path) else { return refuse(404, "EntryNotFound", "Entry not found") };
    let commit = format!("X-Repo-Commit: {commit}");
    let etag = hex(&Sha256::digest(bytes));
    if is_large(&path) {
        let headers = [
            commit,
            format!("X-Linked-Etag: \"{etag}\""),
            if state.hides_sizes { String::new() } else { format!("X-Linked-Size: {}", bytes.len()) },
            format!("Location: {}/other/{name}/{etag}", state.other_server),
        ];
        return plain(302, &headers, "");
    }
    plain(200, &[commit, format!("ETag: \"{}\"", &etag[..40])], bytes.clone())
}

/// Responds to `/other/KIND/NAME/ETAG` on the second server.
fn large(state: &State, request: &Request) -> Answer {
    let found =
        state.repositories.values().flat_map(|repository| repository.revisions.values()).find_map(|(_, files)| {
            files.values().find(|bytes| request.target.ends_with(&hex(&Sha256::digest(bytes)))).cloned()
        });
    found.map_or_else(
        || plain(404, &[], ""),
        |bytes| plain(200, &[String::from("ETag: \"of the other server\"")], bytes),
    )
}

fn sibling(path: &str, bytes: &[u8]) -> String {
    let etag = hex(&Sha256::digest(bytes));
    let lfs = if is_large(path) {
        format!(",\"lfs\":{{\"sha256\":\"{etag}\",\"size\":{},\"pointerSize\":1}}", bytes.len())
    } else {
        String::new()
    };
    let path = path.replace('\\', "\\\\");
    format!("{{\"rfilename\":\"{path}\",\"size\":{},\"blobId\":\"{}\"{lfs}}}", bytes.len(), &etag[..40])
}

fn is_large(path: &str) -> bool {
    LARGE.iter().any(|ending| path.ends_with(ending))
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next().unwrap(), rest.next().unwrap()];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
