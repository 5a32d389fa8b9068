//! Clients that vanish, a full server, and its end.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use ngen3_model::Config;
use serde_json::json;
use tempfile::TempDir;

use crate::client::{Server, parse};
use crate::random_model;

/// Tokens that take the slow model a few seconds.
const MANY: usize = 3_000;

/// A server of a model with a long context.
fn slow_server(arguments: &str) -> (TempDir, Server) {
    let folder = tempfile::tempdir().unwrap();
    random_model(&folder, "slow.pt", &Config::new(2, 2, 64, 4_096, 50_257), false);
    let server = Server::start(folder.path(), &format!("--model_checkpoint slow.pt {arguments}"));
    (folder, server)
}

/// Starts a stream of many tokens and waits for its first bytes.
fn long_stream(server: &Server) -> (TcpStream, Vec<u8>) {
    let body = json!({"prompt": "a", "max_tokens": MANY, "stream": true}).to_string();
    let mut stream = server.send("POST /v1/completions HTTP/1.1", body.as_bytes());
    let mut seen = vec![0; 1024];
    stream.read_exact(&mut seen).unwrap();
    (stream, seen)
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_client_that_leaves_frees_its_place() {
    let (_folder, server) = slow_server("--max_requests 1");
    let (stream, _) = long_stream(&server);
    let small = json!({"prompt": "a", "max_tokens": 1});
    let full = server.post("/v1/completions", &small);
    assert_eq!(full.error(503), "the server is full; try again in a moment");
    assert!(full.headers.contains("retry-after: "), "{}", full.headers);
    let too_many = server.post("/v1/completions", &json!({"prompt": "a", "n": 2}));
    assert_eq!(too_many.error(400), "expected at most 1 texts in a request, got 2 (--max_requests)");
    drop(stream);
    wait_until("the place is free", || server.post("/v1/completions", &small).status == 200);
    assert_eq!(server.metric("ngen3_requests_running"), 0.0);
    let made = server.metric("ngen3_generated_tokens_total");
    assert!(made < MANY as f64, "{made} tokens: the text was cancelled");

    // One that waits for the whole answer leaves, too.
    let body = json!({"prompt": "a", "max_tokens": MANY}).to_string();
    let waiting = server.send("POST /v1/completions HTTP/1.1", body.as_bytes());
    wait_until("it runs", || server.metric("ngen3_requests_running") == 1.0);
    drop(waiting);
    wait_until("the place is free", || server.metric("ngen3_requests_running") == 0.0);
}

#[test]
fn a_slow_reader_holds_nobody_up() {
    let (_folder, server) = slow_server("");
    let (stream, _) = long_stream(&server);
    // The reader of this stream sleeps; others are answered, and its text is complete in the end.
    let small = json!({"prompt": "b", "max_tokens": 2});
    assert_eq!(server.post("/v1/completions", &small).status, 200);
    wait_until("the text is complete", || server.metric("ngen3_requests_running") == 0.0);
    assert_eq!(server.metric("ngen3_generated_tokens_total"), MANY as f64 + 2.0);
    drop(stream);
}

#[test]
fn streams_end_before_the_server_does() {
    let (_folder, server) = slow_server("");
    let (mut stream, mut seen) = long_stream(&server);
    server.signal("TERM");
    let refused = || TcpStream::connect(&server.address).is_err();
    wait_until("new connections are refused", refused);
    stream.read_to_end(&mut seen).unwrap();
    let events = parse(&seen).events();
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "length");
    assert_eq!(server.wait(), (Some(0), String::new()));
}

#[test]
fn a_stream_that_takes_too_long_is_dropped_at_the_end() {
    let (_folder, server) = slow_server("--drain_s 0");
    let (mut stream, mut seen) = long_stream(&server);
    server.signal("TERM");
    let _ = stream.read_to_end(&mut seen);
    assert!(!String::from_utf8_lossy(&seen).contains("[DONE]"));
    let (code, said) = server.wait();
    assert_eq!((code, said.as_str()), (Some(0), "note: some requests did not end within 0 s (--drain_s)\n"));
}

#[test]
fn a_request_has_a_time_limit() {
    let (_folder, server) = slow_server("--timeout_s 1 --max_tokens 4000");
    let body = json!({"prompt": "a", "max_tokens": 4000, "n": 4});
    let error = server.post("/v1/completions", &body).error(504);
    assert_eq!(error, "the request took longer than the server allows (--timeout_s)");
    wait_until("the places are free", || server.metric("ngen3_requests_running") == 0.0);
}

#[test]
fn half_a_request_disturbs_nobody() {
    let (_folder, server) = slow_server("");
    let mut open: Vec<_> = (0..20).map(|_| TcpStream::connect(&server.address).unwrap()).collect();
    for (index, stream) in open.iter_mut().enumerate() {
        let parts =
            ["", "POST", "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{\"prompt\""];
        stream.write_all(parts[index % 3].as_bytes()).unwrap();
    }
    assert_eq!(server.post("/v1/completions", &json!({"prompt": "a", "max_tokens": 1})).status, 200);
    drop(open);
    assert_eq!(server.get("/health").status, 200);
}
