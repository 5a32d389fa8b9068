#![no_main]
//! Input: responses of a hub. The bytes serve as the body of every response, then as every whole response, with status and
//! headers, then as a cached response.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use ngen3_data::hub::{Env, Hub, RepoKind};
use ngen3_data::source::Event;
use ngen3_fuzz::Folder;

static ANSWER: Mutex<Vec<u8>> = Mutex::new(Vec::new());
const TIMEOUT: Duration = Duration::from_secs(1);
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

static ENDPOINT: LazyLock<String> = LazyLock::new(|| {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || listener.incoming().flatten().for_each(|stream| serve(stream).unwrap_or_default()));
    endpoint
});

fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    let lines = BufReader::new(stream.try_clone()?).lines();
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    stream.write_all(&ANSWER.lock().expect("no panic"))
}

fn ask(offline: bool, folder: &Folder) {
    let cache = folder.path().join("hub");
    let hub = Hub::new(Env { endpoint: ENDPOINT.clone(), cache, token: None, offline, timeout: TIMEOUT });
    // Stops at the first retry.
    let mut tell = |event| !matches!(event, Event::Note(_));
    if let Ok(snapshot) = hub.open(RepoKind::Dataset, "a/b", None, &mut tell) {
        for file in snapshot.files().iter().take(2) {
            let _ = snapshot.fetch(&file.path, &mut tell);
        }
    }
    let _ = hub.fetch_model("a/b", None, &mut tell);
    let names = std::fs::read_dir(folder.path()).expect("a folder").flatten().map(|entry| entry.file_name());
    assert!(names.into_iter().all(|name| name == "hub"), "a file was written outside the cache");
}

fuzz_target!(|bytes: &[u8]| {
    let head =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nETag: \"0123\"\r\nConnection: close\r\n\r\n", bytes.len());
    for answer in [[head.as_bytes(), bytes].concat(), bytes.to_vec()] {
        *ANSWER.lock().expect("no panic") = answer;
        ask(false, &Folder::new());
    }
    let folder = Folder::new();
    folder.put("hub/datasets--a--b/refs/main", COMMIT);
    folder.put(&format!("hub/datasets--a--b/trees/{COMMIT}.json"), bytes);
    ask(true, &folder);
});
