//! Requests to `ngen3 serve`: bodies that nest, numbers that no machine holds, lists without end, clients that never finish.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ngen3_data::chat::ChatTemplate;
use ngen3_model::{CheckpointMeta, Config, ParamList, checkpoint};
use serde_json::json;
use wait4::Wait4;

use crate::case::{LIMIT, MEMORY, Table};
use crate::common::ngen3;

/// A server, which ends with this value.
struct Server {
    child: Option<Child>,
    address: String,
}

impl Server {
    fn start(table: &Table, more: &str) -> Self {
        let mut command =
            ngen3(table.path(), &format!("serve --port 0 --threads 1 --model_checkpoint talker.pt{more}"));
        command.env_remove("NGEN3_API_KEY").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let line = lines.find(|line| line.contains(" at http://")).expect("the server starts");
        let address = line.split(" at http://").nth(1).unwrap().split(' ').next().unwrap().to_owned();
        // Its log is read, or it would wait for a reader.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child: Some(child), address }
    }

    /// Sends a request; returns the status and the body, or what happened instead.
    fn ask(&self, head: &str, body: &[u8]) -> (String, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        // A server that refuses a request may close before all of it is sent.
        let _ = write!(
            stream,
            "{head}\r\nHost: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            self.address,
            body.len()
        );
        let _ = stream.write_all(body);
        answer(stream)
    }

    fn post(&self, path: &str, body: &[u8]) -> (String, String) {
        self.ask(&format!("POST {path} HTTP/1.1"), body)
    }

    /// Peak of the memory so far, in bytes.
    fn peak(&self) -> u64 {
        let id = self.child.as_ref().unwrap().id();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        line.map_or(0, |line| line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Reads an answer to its end.
fn answer(mut stream: TcpStream) -> (String, String) {
    let mut bytes = Vec::new();
    let ended = Read::by_ref(&mut stream).take(64 << 20).read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let status = text.split(' ').nth(1).unwrap_or_default().to_owned();
    match text.split_once("\r\n\r\n") {
        Some((_, body)) => (status, body.to_owned()),
        None => ("closed".into(), ended.err().map_or_else(String::new, |error| error.to_string())),
    }
}

#[test]
fn requests_that_ask_too_much() {
    let mut table = Table::new("Requests to `ngen3 serve`");
    let config = Config::new(2, 2, 16, 64, 50_257);
    let meta =
        CheckpointMeta { chat: Some(ChatTemplate::default_format("<|endoftext|>")), ..CheckpointMeta::default() };
    checkpoint::save(&table.path().join("talker.pt"), &config, &ParamList::new(&config).init(1), &meta).unwrap();
    let server = Server::start(&table, " --timeout_s 5");
    let hi = json!([{"role": "user", "content": "Hi"}]);
    let with =
        |name: &str, value: &str| format!("{{\"prompt\":\"a\",\"max_tokens\":2,\"{name}\":{value}}}").into_bytes();
    let list = |item: &str, times: usize| format!("[{item}{}]", format!(",{item}").repeat(times - 1));
    let chat = |value: &str| format!("{{\"messages\":{value},\"max_tokens\":2}}").into_bytes();
    let bias: Vec<_> = (0..250_000).map(|at| format!("\"{at}\":1")).collect();
    let parts = |part: &str, times: usize| chat(&format!("[{{\"role\":\"user\",\"content\":{}}}]", list(part, times)));
    let image = format!(
        "{{\"type\":\"image_url\",\"image_url\":{{\"url\":\"data:image/png;base64,{}\"}}}}",
        "A".repeat(3_000_000)
    );
    let (completions, chats) = ("/v1/completions", "/v1/chat/completions");
    for (input, path, body, status) in [
        ("lists 100,000 deep", completions, with("stop", &"[".repeat(100_000)), "400"),
        ("objects 100,000 deep", completions, with("stop", &"{\"a\":".repeat(100_000)), "400"),
        ("`max_tokens` of 2^31", completions, with("max_tokens", "2147483648"), "200"),
        ("`max_tokens` of 10^400", completions, with("max_tokens", &"9".repeat(400)), "400"),
        ("`max_tokens` of -1", completions, with("max_tokens", "-1"), "400"),
        ("`n` of 10^9", completions, with("n", "1000000000"), "400"),
        ("`n` of -1", completions, with("n", "-1"), "400"),
        ("`best_of` of 10^9", completions, with("best_of", "1000000000"), "400"),
        ("`temperature` of 1e-320", completions, with("temperature", "1e-320"), "200"),
        ("`temperature` of 1e400", completions, with("temperature", "1e400"), "400"),
        ("`top_p` of -1e308", completions, with("top_p", "-1e308"), "400"),
        ("`seed` of -2^63", completions, with("seed", "-9223372036854775808"), "400"),
        ("`stop` of 10^6 texts", completions, with("stop", &list("\"a\"", 1_000_000)), "400"),
        ("`stop` of one text of 3 MB", completions, with("stop", &format!("\"{}\"", "a".repeat(3 << 20))), "200"),
        ("`logit_bias` of 250,000 tokens", completions, with("logit_bias", &format!("{{{}}}", bias.join(","))), "400"),
        (
            "500,000 prompts",
            completions,
            format!("{{\"prompt\":{},\"max_tokens\":1}}", list("\"a\"", 500_000)).into_bytes(),
            "400",
        ),
        (
            "a prompt of 1.9 million tokens",
            completions,
            format!("{{\"prompt\":{}}}", list("1", 1_900_000)).into_bytes(),
            "400",
        ),
        (
            "a prompt of 4 MB",
            completions,
            format!("{{\"prompt\":\"{}\"}}", "a b ".repeat(1 << 20)[..4_100_000].to_owned()).into_bytes(),
            "400",
        ),
        (
            "a prompt of one word of 4 MB",
            completions,
            format!("{{\"prompt\":\"{}\"}}", "a".repeat(4_100_000)).into_bytes(),
            "400",
        ),
        ("a body of 2 million numbers", completions, with("x", &list("0", 2_000_000)), "400"),
        ("a body above the limit", completions, vec![b' '; 5 << 20], "413"),
        ("200,000 messages", chats, chat(&list("{\"role\":\"user\"}", 200_000)), "400"),
        ("100,000 text parts", chats, parts("{\"type\":\"text\",\"text\":\"a\"}", 100_000), "400"),
        ("an image of 3 MB", chats, parts(&image, 1), "400"),
        ("`messages` of numbers", chats, chat(&list("-1", 1_000)), "400"),
        (
            "a role of 1 MB",
            chats,
            chat(&format!("[{{\"role\":\"{}\",\"content\":\"a\"}}]", "r".repeat(1 << 20))),
            "400",
        ),
        (
            "tools 100 deep",
            chats,
            format!("{{\"messages\":{hi},\"max_tokens\":2,\"tools\":{}1{}}}", "[".repeat(100), "]".repeat(100))
                .into_bytes(),
            "400",
        ),
        (
            "`tokenize` of 4 MB",
            "/tokenize",
            format!("{{\"prompt\":\"{}\"}}", "a b ".repeat(1 << 20)[..4_100_000].to_owned()).into_bytes(),
            "200",
        ),
        ("`detokenize` of 2^32 - 1", "/detokenize", b"{\"tokens\":[4294967295]}".to_vec(), "400"),
        (
            "`detokenize` of 1.9 million tokens",
            "/detokenize",
            format!("{{\"tokens\":{}}}", list("1", 1_900_000)).into_bytes(),
            "200",
        ),
        ("a surrogate alone", completions, b"{\"prompt\":\"\\ud83d\"}".to_vec(), "400"),
    ] {
        measured(&mut table, &server, input, status, |server| server.post(path, &body));
    }
    let long = |name: &str, size: usize| format!("GET /v1/models HTTP/1.1\r\n{name}: {}", "a".repeat(size));
    measured(&mut table, &server, "a header of 10 MB", "431", |server| server.ask(&long("X", 10 << 20), b""));
    let many = format!("GET /v1/models HTTP/1.1{}", "\r\nX: y".repeat(100_000));
    measured(&mut table, &server, "100,000 headers", "431", |server| server.ask(&many, b""));
    measured(&mut table, &server, "a path of 1 MB", "431", |server| {
        server.ask(&format!("GET /{} HTTP/1.1", "a".repeat(1 << 20)), b"")
    });
    measured(&mut table, &server, "`run=../../etc/passwd`", "404", |server| {
        server.ask("GET /runs/metrics?run=..%2F..%2Fetc%2Fpasswd HTTP/1.1", b"")
    });
    let part = |text: &'static str, more: &'static [u8]| {
        move |server: &Server| {
            let mut stream = TcpStream::connect(&server.address).unwrap();
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            let _ = write!(stream, "{}", text.replace("HOST", &server.address));
            let _ = stream.write_all(more);
            answer(stream)
        }
    };
    measured(
        &mut table,
        &server,
        "half a body, then silence",
        "408",
        part("POST /v1/completions HTTP/1.1\r\nHost: HOST\r\nContent-Length: 1000\r\n\r\n", b"{"),
    );
    measured(&mut table, &server, "half a header, then silence", "", part("POST /v1/completions HTTP/1.1\r\nHo", b""));
    measured(
        &mut table,
        &server,
        "a length of 2^64 - 1",
        "",
        part("POST /v1/completions HTTP/1.1\r\nHost: HOST\r\nContent-Length: 18446744073709551615\r\n\r\n", b"{}"),
    );
    measured(
        &mut table,
        &server,
        "two lengths",
        "400",
        part("POST /v1/completions HTTP/1.1\r\nHost: HOST\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n", b"{}"),
    );
    measured(
        &mut table,
        &server,
        "a chunk of 2^64 bytes",
        "",
        part(
            "POST /v1/completions HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"10000000000000000\r\n{}",
        ),
    );
    measured(&mut table, &server, "no HTTP at all", "400", part("", &[0xff; 1000]));
    let idle: Vec<_> = (0..200).map(|_| TcpStream::connect(&server.address).unwrap()).collect();
    measured(&mut table, &server, "a request beside 200 idle connections", "200", |server| {
        server.ask("GET /health HTTP/1.1", b"")
    });
    drop(idle);

    // The server still serves, and ends as it is told to.
    let (status, body) = server.post(completions, &with("seed", "1"));
    assert!(status == "200" && body.contains("\"choices\""), "{status} {body}");
    let mut server = server;
    let child = server.child.take().unwrap();
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let used = child.wait4().unwrap();
    assert!(used.rusage.maxrss < MEMORY, "{} bytes of memory", used.rusage.maxrss);
    let seconds = (used.rusage.utime + used.rusage.stime).as_secs_f64();
    table.add_row("all of these", "", seconds, used.rusage.maxrss);
    table.print();
}

/// Asks, and adds a row with the wall-clock time and the peak of the server's memory so far.
fn measured(
    table: &mut Table,
    server: &Server,
    input: &str,
    expected: &str,
    ask: impl FnOnce(&Server) -> (String, String),
) {
    let started = Instant::now();
    let (status, body) = ask(server);
    let seconds = started.elapsed();
    assert!(expected.is_empty() || status == expected || status == "closed", "{input}: {status} {:.300}", body);
    assert!(!status.starts_with('5') || status == "503", "{input}: {status} {:.300}", body);
    assert!(seconds < LIMIT, "{input}: no answer within {LIMIT:?}");
    let message = serde_json::from_str::<serde_json::Value>(&body).ok();
    let message = message.and_then(|body| Some(body["error"]["message"].as_str()?.to_owned())).unwrap_or_default();
    assert!(message.len() < 1_000, "{input}: a message of {} bytes", message.len());
    let alive = server.ask("GET /health HTTP/1.1", b"").0;
    assert_eq!(alive, "200", "{input}: the server no longer answers");
    table.add_row(input, &format!("{status} {message}"), Duration::as_secs_f64(&seconds), server.peak());
}
