//! A hub that lies: lengths, checksums, redirects, names, endless bodies.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use crate::case::Table;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const FETCH: &str = "hf_tokenize --hf_dataset a/b --hf_split train --hf_text_column text --dataset x";

/// Answers a request for a path.
type Answer = Arc<dyn Fn(&str, &mut TcpStream) -> std::io::Result<()> + Send + Sync>;

/// Starts a server that answers every request by `answer`; returns its URL.
fn serve(answer: impl Fn(&str, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer: Answer = Arc::new(answer);
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                let first = lines.next().unwrap_or_default();
                lines.take_while(|line| !line.is_empty()).for_each(drop);
                // The program may leave before the end, which is its right.
                let _ = answer(first.split(' ').nth(1).unwrap_or_default(), &mut stream);
            });
        }
    });
    url
}

fn body(stream: &mut TcpStream, headers: &str, body: &[u8]) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n", body.len())?;
    stream.write_all(body)
}

/// The listing of a dataset with these files.
fn listing(files: &str) -> String {
    format!("{{\"sha\":\"{COMMIT}\",\"siblings\":[{files}]}}")
}

/// Serves a listing as it is.
fn lists(text: String) -> String {
    serve(move |_, stream| body(stream, "", text.as_bytes()))
}

/// Serves `train.jsonl` by `answer`; the listing says that it has 13 bytes and this hash.
fn file(answer: impl Fn(&mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> String {
    let one = "{\"rfilename\":\"train.jsonl\",\"size\":13,\"lfs\":{\"sha256\":\"0000000000000000000000000000000000000000000000000000000000000000\",\"size\":13,\"pointerSize\":1}}";
    let text = listing(one);
    serve(
        move |path, stream| if path.starts_with("/api/") { body(stream, "", text.as_bytes()) } else { answer(stream) },
    )
}

const HEADERS: &str = "X-Linked-Size: 13\r\nX-Linked-Etag: \"0000000000000000000000000000000000000000000000000000000000000000\"\r\nX-Repo-Commit: 0123456789abcdef0123456789abcdef01234567\r\n";

#[test]
fn hubs_that_lie() {
    let mut table = Table::new("A hub that lies");
    let secret = table.path().join("secret");
    std::fs::write(&secret, "secret").unwrap();
    let redirect = |to: String| {
        serve(move |_, stream| {
            write!(stream, "HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        })
    };
    let siblings = |name: &str| lists(listing(&format!("{{\"rfilename\":\"{name}\"}}")));
    let endless = |head: &'static str| {
        serve(move |_, stream| {
            stream.write_all(head.as_bytes())?;
            let block = [b'a'; 1 << 16];
            loop {
                stream.write_all(&block)?;
            }
        })
    };
    let cases: Vec<(&str, String, &str)> = vec![
        ("a redirect to itself", redirect("/api/datasets/a/b".into()), "too many redirects"),
        ("a redirect to `file:///etc/passwd`", redirect("file:///etc/passwd".into()), "redirects to an invalid URL"),
        ("a redirect to `gopher://`", redirect("gopher://127.0.0.1:1/".into()), "redirects to an invalid URL"),
        ("a redirect of a million characters", redirect(format!("/{}", "a".repeat(1_000_000))), ""),
        ("a commit of `../../x`", lists("{\"sha\":\"../../x\",\"siblings\":[]}".into()), "expected a commit hash"),
        ("a file `../../x`", siblings("../../x"), "points outside the cache"),
        ("a file `/etc/passwd`", siblings("/etc/passwd"), "points outside the cache"),
        ("a file `..\\\\..\\\\x`", siblings("..\\\\..\\\\x"), "points outside the cache"),
        ("a file with escapes for the terminal", siblings("a\\u001b[2J"), "points outside the cache"),
        ("lists 100,000 deep", lists("[".repeat(100_000)), "unexpected response"),
        ("an endless listing", endless("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"), ""),
        ("an endless header", endless("HTTP/1.1 200 OK\r\nX: "), ""),
        (
            "a length of 2^64 - 1",
            serve(|_, stream| write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n{{")),
            "",
        ),
        ("a length of -1", serve(|_, stream| write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{{}}")), ""),
        (
            "a chunk of 2^64 bytes",
            serve(|_, stream| {
                write!(stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000000\r\n{{}}")
            }),
            "",
        ),
        ("no HTTP at all", serve(|_, stream| stream.write_all(&[0xff; 1000])), ""),
        (
            "an error of escapes",
            serve(|_, stream| {
                write!(
                    stream,
                    "HTTP/1.1 403 No\r\nContent-Length: 30\r\nConnection: close\r\n\r\n{{\"error\":\"\\u001b[2J\\u0007 no!!\"}}"
                )
            }),
            "403",
        ),
        ("a file with another hash", file(|stream| body(stream, HEADERS, b"{\"text\":\"a\"}\n")), ""),
        ("a file longer than it claims", file(|stream| body(stream, HEADERS, &[b'a'; 5_000_000])), ""),
        (
            "a file shorter than it claims",
            file(|stream| {
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 13\r\nConnection: close\r\n{HEADERS}\r\n{{")
            }),
            "",
        ),
        (
            "an ETag of `../../x`",
            file(|stream| {
                body(
                    stream,
                    "ETag: \"../../x\"\r\nX-Repo-Commit: 0123456789abcdef0123456789abcdef01234567\r\n",
                    b"{\"text\":\"a\"}\n",
                )
            }),
            "",
        ),
    ];
    for (input, url, reason) in cases {
        refused(&mut table, input, url, reason);
    }
    let many = (0..1_000_000).map(|at| format!("{{\"rfilename\":\"../{at}\"}}")).collect::<Vec<_>>().join(",");
    refused(&mut table, "10^6 files `../`", lists(listing(&many)), "points outside the cache");
    // Written as it is sent, so that this process stays small.
    let lots = serve(move |_, stream| {
        let (each, count) = ("{\"rfilename\":\"a\"},".repeat(1_000), 3_500);
        let head = format!("{{\"sha\":\"{COMMIT}\",\"siblings\":[");
        let end = "{\"rfilename\":\"../a\"}]}";
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}",
            head.len() + each.len() * count + end.len()
        )?;
        (0..count).try_for_each(|_| stream.write_all(each.as_bytes()))?;
        stream.write_all(end.as_bytes())
    });
    refused(&mut table, "3.5 million files", lots, "points outside the cache");
    table.print();
}

/// Runs the command with this hub. It may write only to the cache, and no file outside of it or with a wrong hash.
fn refused(table: &mut Table, input: &str, url: String, reason: &str) {
    let host = url.trim_start_matches("http://").to_owned();
    table.set("HF_ENDPOINT", url);
    let (before, cache) = (table.listing(), table.path().join("hf"));
    let ended = table.run(FETCH, b"");
    let new: Vec<_> = table.listing().into_keys().filter(|path| !before.contains_key(path) && *path != cache).collect();
    let printed = match ended.error() {
        Ok(error) if ended.code != Some(1) => Err(format!("exit code {:?}; {error}", ended.code)),
        Ok(error) if !error.contains(reason) => Err(format!("expected {reason:?} in {error:?}")),
        Ok(_) if new.iter().any(|path| !path.starts_with(&cache) || path.ends_with("train.jsonl")) => {
            Err(format!("{new:?}"))
        }
        Ok(error) => Ok(error.replace(&host, "HUB")),
        other => other,
    };
    table.judge(input, printed, &ended);
    let _ = std::fs::remove_dir_all(cache);
}
