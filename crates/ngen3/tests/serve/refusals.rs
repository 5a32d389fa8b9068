//! Requests that a server refuses, and its errors.

use serde_json::{Value, json};

use crate::client::Server;
use crate::{parrot_server, random_server};

#[test]
fn parameters_that_cannot_be_honoured_are_refused_by_name() {
    let (_folder, server) = random_server();
    let cases: &[(&str, Value, &str, &str)] = &[
        ("best_of", json!(2), "best_of: not supported by this server", "unsupported_parameter"),
        ("suffix", json!("end"), "suffix: not supported by this server", "unsupported_parameter"),
        ("logit_bias", json!({"50256": -100}), "logit_bias: not supported by this server", "unsupported_parameter"),
        ("frequency_penalty", json!(0.5), "frequency_penalty: not supported by this server", "unsupported_parameter"),
        ("temprature", json!(1), "temprature: unknown parameter", "unknown_parameter"),
        ("temperature", json!(-1), "temperature: expected 0 (greedy) or a positive number, got -1", ""),
        ("temperature", json!("hot"), "temperature: expected a number, got \"hot\"", ""),
        ("top_p", json!(0), "top_p: expected above 0 and at most 1, got 0", ""),
        ("n", json!(0), "n: expected a whole number from 1 to 128, got 0", ""),
        ("max_tokens", json!(-5), "max_tokens: expected a whole number of at least 0, got -5", ""),
        ("seed", json!(1.5), "seed: expected a whole number of at least 0, got 1.5", ""),
        ("stop", json!([""]), "stop: expected at most 16 texts, none of them empty", ""),
        ("logprobs", json!(21), "logprobs: expected a whole number from 0 to 20, got 21", ""),
        ("stream_options", json!({"include_usage": true}), "stream_options: only allowed with stream: true", ""),
        (
            "prompt",
            json!({}),
            "prompt: expected a string, a list of strings, a list of token ids, or a list of those, got an object",
            "",
        ),
        ("prompt", json!([70_000]), "prompt: token 70000 is outside the model's vocabulary of 50257", ""),
    ];
    for (name, value, message, code) in cases {
        let mut body = json!({"model": "base", "prompt": "a"});
        body[*name] = value.clone();
        let answer = server.post("/v1/completions", &body);
        assert_eq!(answer.error(400), *message);
        let error = &answer.json()["error"];
        assert_eq!((error["param"].as_str(), error["type"].as_str()), (Some(*name), Some("invalid_request_error")));
        assert_eq!(error["code"].as_str().unwrap_or_default(), *code);
    }
    let harmless = json!({"model": "base", "prompt": "a", "max_tokens": 1, "user": "x", "metadata": {}, "store": true, "service_tier": "auto",
        "best_of": 1, "suffix": null, "logit_bias": {}, "presence_penalty": 0});
    assert_eq!(server.post("/v1/completions", &harmless).status, 200);
}

#[test]
fn conversations_that_the_template_cannot_render_are_refused() {
    let (_folder, server) = random_server();
    let hi = json!([{"role": "user", "content": "Hi"}]);
    let post = |more: Value| {
        let mut body = json!({"model": "talker", "messages": hi, "max_tokens": 1});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post("/v1/chat/completions", &body)
    };
    let cases = [
        (json!({"model": "base"}), "base has no chat template: it continues texts (/v1/completions)"),
        (json!({"messages": "Hi"}), "messages: expected a list of messages, got \"Hi\""),
        (json!({"messages": ["Hi"]}), "messages: expected objects with role and content, got \"Hi\""),
        (json!({"messages": []}), "messages: expected at least one turn, got none"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
            "messages: message 1: expected only text in content, got another part",
        ),
        (json!({"response_format": {"type": "json_object"}}), "response_format: not supported by this server"),
        (
            json!({"tools": [{"type": "function", "function": {"name": "f"}}]}),
            "tools: the chat template of talker has no place for them",
        ),
        (json!({"tool_choice": "required"}), "tool_choice: not supported by this server"),
        (json!({"top_logprobs": 2}), "top_logprobs: only allowed with logprobs: true"),
    ];
    for (more, message) in cases {
        assert_eq!(post(more).error(400), message);
    }
    let neutral =
        json!({"response_format": {"type": "text"}, "tool_choice": "none", "tools": [], "modalities": ["text"]});
    assert_eq!(post(neutral).status, 200);
}

#[test]
fn errors_of_http_have_the_same_form() {
    let (_folder, server) = random_server();
    let head = "POST /v1/completions HTTP/1.1";
    assert!(server.request(head, b"{\"prompt\": ").error(400).starts_with("invalid JSON: EOF"));
    assert!(server.request(head, b"{\"prompt\": \"\xff\xfe\"}").error(400).starts_with("invalid JSON: "));
    assert_eq!(server.request(head, b"[]").error(400), "expected a JSON object, got a list");
    assert_eq!(server.post("/v1/embeddings", &json!({})).error(404), "unknown path: POST /v1/embeddings");
    assert_eq!(server.get("/v1/completions").error(405), "/v1/completions does not take GET");
    assert_eq!(
        server.post("/v1/completions", &json!({"prompt": "a"})).error(400),
        "model: missing; expected one of base, talker"
    );
    let unknown = server.post("/v1/completions", &json!({"model": "gpt-4", "prompt": "a"}));
    assert_eq!(unknown.error(404), "no model \"gpt-4\"; expected base, talker");
    assert_eq!(unknown.json()["error"]["code"], "model_not_found");
    let large = vec![b' '; (4 << 20) + 1];
    assert_eq!(server.request(head, &large).error(413), "expected a body of at most 4194304 bytes (--max_body_mib)");
}

#[test]
fn a_prompt_beyond_the_context_is_refused_with_both_numbers() {
    let (_folder, server) = parrot_server(" is a rose");
    let long = server.post("/v1/completions", &json!({"prompt": vec![1; 64]}));
    let expected =
        "this model's context is 64 tokens for the prompt and the answer; the prompt alone has 64: shorten it";
    assert_eq!(long.error(400), expected);
    assert_eq!(long.json()["error"]["code"], "context_length_exceeded");
    // As long as there is room for a token, the answer ends where the context does.
    let answer =
        server.post("/v1/completions", &json!({"prompt": vec![1; 62], "max_tokens": 50, "temperature": 0})).json();
    assert_eq!(
        (&answer["usage"]["completion_tokens"], &answer["choices"][0]["finish_reason"]),
        (&json!(2), &json!("length"))
    );
}

#[test]
fn only_those_with_the_key_and_from_this_machine_are_served() {
    let folder = crate::parrot_of(&[1, 2]);
    let server = Server::start(
        folder.path(),
        "--model_checkpoint parrot.pt --api_key secret --cors_origin https://friend.example",
    );
    let get = |headers: &str| server.request(&format!("GET /v1/models HTTP/1.1\r\n{headers}"), b"");
    let right = "Authorization: Bearer secret";
    assert_eq!(get(right).status, 200);
    for wrong in ["Authorization: Bearer secreT", "Authorization: Bearer", "Authorization: secret", "X: y"] {
        let answer = get(wrong);
        assert_eq!(answer.error(401), "missing or wrong API key: expected the header Authorization: Bearer KEY");
        assert!(answer.headers.contains("www-authenticate: bearer"));
    }
    // The page asks for the key itself.
    assert_eq!(server.get("/").status, 200);
    for path in ["/metrics", "/runs", "/runs/metrics?run=a.run"] {
        assert_eq!(server.get(path).status, 401, "{path}");
    }
    let foreign = get(&format!("{right}\r\nOrigin: https://evil.example"));
    assert_eq!(foreign.error(403), "requests from pages of this origin are not allowed (--cors_origin)");
    assert!(!foreign.headers.contains("access-control-allow-origin"));
    assert_eq!(get(&format!("{right}\r\nOrigin: null")).status, 403);
    assert_eq!(get(&format!("{right}\r\nOrigin: http://{}", server.address)).status, 200);
    let friend = get(&format!("{right}\r\nOrigin: https://friend.example"));
    assert!(friend.status == 200 && friend.headers.contains("access-control-allow-origin: https://friend.example"));
    let asked = "OPTIONS /v1/chat/completions HTTP/1.1\r\nOrigin: https://friend.example\r\nAccess-Control-Request-Method: POST";
    let preflight = server.request(asked, b"");
    assert!(
        preflight.status == 204
            && preflight.headers.contains("access-control-allow-headers: authorization, content-type")
    );
    // A name of somebody else's that points here.
    let rebound = get(&format!("{right}\r\nHost: evil.example:8000"));
    assert_eq!(
        rebound.error(403),
        "expected localhost, 127.0.0.1 or [::1] as the Host: this server is for this machine only"
    );
    assert_eq!(get(&format!("{right}\r\nHost: localhost:9")).status, 200);
}

#[test]
fn other_machines_need_a_key_or_an_open_door() {
    let folder = tempfile::tempdir().unwrap();
    let error = crate::common::fail(folder.path(), "serve --runs . --host 0.0.0.0 --port 0", 1);
    let expected = "--host 0.0.0.0: other machines can reach this address; set a key (--api_key or NGEN3_API_KEY), or let everyone in (--no_auth)";
    assert_eq!(error, expected);
    let error = crate::common::fail(folder.path(), "serve --runs nowhere --port 0", 1);
    assert_eq!(error, "--runs nowhere: expected a folder");
}
