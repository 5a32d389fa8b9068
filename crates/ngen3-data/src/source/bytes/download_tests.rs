//! Downloads from a scripted server on loopback.

use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::*;

/// Answers each connection with the next of `answers`, byte for byte, then closes it.
struct Server {
    url: String,
    /// The head of each request so far, in lower case.
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(answers: Vec<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/text", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                seen.lock().unwrap().push(head(&stream));
                stream.write_all(&answer).unwrap();
            }
        });
        Self { url, requests }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    /// Downloads without pauses and without a proxy; returns the bytes and the notes.
    fn download(&self) -> Result<(Vec<u8>, Vec<String>), String> {
        let mut client = Client::new();
        client.pause = Duration::from_millis(1);
        let config = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build();
        client.agent = config.new_agent();
        let scratch = tempfile::tempdir().unwrap();
        let mut notes = Vec::new();
        let mut progress = |event| {
            if let Event::Note(note) = event {
                notes.push(note);
            }
            true
        };
        let result = client.download(&self.url, scratch.path(), &mut progress);
        assert_eq!(scratch.path().read_dir().unwrap().count(), 0, "no named file is left behind");
        let (mut file, size) = result.map_err(|error| error.to_string())?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, size);
        Ok((bytes, notes))
    }
}

fn head(stream: &TcpStream) -> String {
    let lines = BufReader::new(stream).lines().map(Result::unwrap);
    lines.take_while(|line| !line.is_empty()).map(|line| line.to_ascii_lowercase() + "\n").collect()
}

fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 {status}\r\nConnection: close\r\n").into_bytes();
    for header in headers.split('|').filter(|header| !header.is_empty()) {
        bytes.extend_from_slice(format!("{header}\r\n").as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes
}

const TEXT: &[u8] = b"It was the best of times, it was the worst of times";

/// A response that promises all of TEXT and breaks off after 20 bytes.
fn broken(headers: &str) -> Vec<u8> {
    answer("200 OK", &format!("Content-Length: {}|{headers}", TEXT.len()), &TEXT[..20])
}

fn whole() -> Vec<u8> {
    answer("200 OK", &format!("Content-Length: {}", TEXT.len()), TEXT)
}

fn rest(range: &str) -> Vec<u8> {
    answer("206 Partial Content", &format!("Content-Length: {}|Content-Range: {range}", TEXT.len() - 20), &TEXT[20..])
}

#[test]
fn a_file_arrives_after_a_redirect() {
    let server = Server::start(vec![answer("302 Found", "Location: /elsewhere|Content-Length: 0", b""), whole()]);
    let (bytes, notes) = server.download().unwrap();
    assert_eq!(bytes, TEXT);
    assert!(notes.is_empty(), "{notes:?}");
    let requests = server.requests();
    assert!(requests[0].starts_with("get /text http/1.1\n") && requests[1].starts_with("get /elsewhere http/1.1\n"));
}

#[test]
fn gzip_on_the_way_is_undone_and_chunks_are_joined() {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(TEXT).unwrap();
    let packed = encoder.finish().unwrap();
    let headers = format!("Content-Encoding: gzip|Content-Length: {}", packed.len());
    let server = Server::start(vec![answer("200 OK", &headers, &packed)]);
    assert_eq!(server.download().unwrap().0, TEXT);
    assert!(server.requests()[0].contains("accept-encoding: gzip\n"));

    let mut chunked = Vec::new();
    for chunk in TEXT.chunks(20) {
        chunked.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        chunked.extend_from_slice(chunk);
        chunked.extend_from_slice(b"\r\n");
    }
    let cut = answer("200 OK", "Transfer-Encoding: chunked", &chunked);
    chunked.extend_from_slice(b"0\r\n\r\n");
    let complete = answer("200 OK", "Transfer-Encoding: chunked", &chunked);
    let server = Server::start(vec![cut, complete]);
    let (bytes, notes) = server.download().unwrap();
    assert_eq!(bytes, TEXT);
    assert_eq!(notes.len(), 1, "the first answer lacked its last chunk: {notes:?}");
}

#[test]
fn a_broken_download_goes_on_where_it_broke_off() {
    for (headers, condition) in [
        ("ETag: \"v1\"", "if-range: \"v1\"\n"),
        ("ETag: W/\"v1\"|Last-Modified: Sat, 01 Jan 2000 00:00:00 GMT", "if-range: sat, 01 jan 2000 00:00:00 gmt\n"),
    ] {
        let server = Server::start(vec![broken(headers), rest("bytes 20-50/51")]);
        let (bytes, notes) = server.download().unwrap();
        assert_eq!(bytes, TEXT);
        assert!(notes[0].contains("connection lost after 20 of 51 bytes"), "{notes:?}");
        let requests = server.requests();
        assert_eq!(requests.len(), 2);
        assert!(!requests[0].contains("range:"));
        assert!(requests[1].contains("range: bytes=20-\n") && requests[1].contains(condition), "{}", requests[1]);
        assert!(requests[1].contains("accept-encoding: identity\n"));
    }
}

#[test]
fn a_download_that_cannot_be_resumed_starts_over() {
    // No validator; a server that ignores Range; a wrong rest; a file that has shrunk.
    let cases = [
        vec![broken(""), whole()],
        vec![broken("ETag: W/\"weak\""), whole()],
        vec![broken("ETag: \"v1\""), whole()],
        vec![broken("ETag: \"v1\""), rest("bytes 20-60/61"), whole()],
        vec![broken("ETag: \"v1\""), rest("bytes 19-50/51"), whole()],
        vec![broken("ETag: \"v1\""), rest("nonsense"), whole()],
        vec![broken("ETag: \"v1\""), answer("206 Partial Content", "Content-Length: 0", b""), whole()],
        vec![broken("ETag: \"v1\""), answer("416 Range Not Satisfiable", "Content-Length: 0", b""), whole()],
    ];
    for answers in cases {
        let count = answers.len();
        let server = Server::start(answers);
        assert_eq!(server.download().unwrap().0, TEXT);
        let requests = server.requests();
        assert_eq!(requests.len(), count);
        assert!(count == 2 || !requests[2].contains("range:"), "the third request is for the whole file");
    }
}

#[test]
fn progress_earns_more_attempts_and_standing_still_does_not() {
    // Each response brings two more bytes: far more breaks than RETRIES, and the file still arrives.
    let answers = (0..TEXT.len()).step_by(2).map(|start| {
        let end = (start + 2).min(TEXT.len());
        let left = TEXT.len() - start;
        match start {
            0 => answer("200 OK", &format!("Content-Length: {left}|ETag: \"v1\""), &TEXT[..end]),
            _ => {
                let headers = format!("Content-Length: {left}|Content-Range: bytes {start}-50/51");
                answer("206 Partial Content", &headers, &TEXT[start..end])
            }
        }
    });
    assert_eq!(Server::start(answers.collect()).download().unwrap().0, TEXT);

    let server = Server::start(vec![broken(""); 9]);
    let error = server.download().unwrap_err();
    assert!(error.contains("connection lost after 20 of 51 bytes"), "{error}");
    assert!(error.ends_with("(gave up after 5 attempts)"), "{error}");
    assert_eq!(server.requests().len(), 5);
}

#[test]
fn a_busy_server_is_asked_again_and_a_missing_page_is_not() {
    let busy = || answer("503 Service Unavailable", "Content-Length: 4", b"busy");
    let server = Server::start(vec![busy(), answer("429 Too Many Requests", "Content-Length: 0", b""), whole()]);
    assert_eq!(server.download().unwrap().0, TEXT);
    let error = Server::start(vec![busy(); 5]).download().unwrap_err();
    assert!(error.contains("the server returned 503 Service Unavailable (gave up"), "{error}");

    let server = Server::start(vec![answer("404 Not Found", "Content-Length: 4", b"gone")]);
    let error = server.download().unwrap_err();
    assert_eq!(error, format!("cannot download {}: the server returned 404 Not Found", server.url));
}

#[test]
fn nonsense_and_absence_are_errors() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/text", listener.local_addr().unwrap());
    drop(listener);
    let nobody = Server { url, requests: Arc::default() };
    let error = nobody.download().unwrap_err();
    assert!(error.to_lowercase().contains("refused") && !error.contains("gave up"), "{error}");

    let nowhere = Server { url: "http://no-such-host.invalid/".into(), requests: Arc::default() };
    let error = nowhere.download().unwrap_err();
    assert!(error.ends_with("(check the network connection)") && !error.contains("gave up"), "{error}");

    for (url, reason) in [("http://", "malformed"), ("http://a b/", "malformed")] {
        let error = Server { url: url.into(), requests: Arc::default() }.download().unwrap_err();
        assert!(error.contains(reason), "{error}");
    }

    let server = Server::start(vec![answer("200 OK", "Content-Encoding: br|Content-Length: 4", b"\x01\x02\x03\x04")]);
    assert!(server.download().unwrap_err().contains("unexpected Content-Encoding, \"br\""));
    let server = Server::start(vec![Vec::new(), whole()]);
    assert_eq!(server.download().unwrap().0, TEXT, "a connection closed at once is retried");
    assert!(Server::start(vec![b"SSH-2.0-OpenSSH\r\n\r\n".to_vec()]).download().is_err());
    let round = || answer("302 Found", "Location: /text|Content-Length: 0", b"");
    assert!(Server::start(vec![round(); 20]).download().unwrap_err().contains("redirect"));
}

#[test]
fn a_web_page_is_remarked_on() {
    let headers = format!("Content-Type: Text/HTML; charset=utf-8|Content-Length: {}", TEXT.len());
    let (_, notes) = Server::start(vec![answer("200 OK", &headers, TEXT)]).download().unwrap();
    assert!(notes[0].contains("is a web page"), "{notes:?}");
}
