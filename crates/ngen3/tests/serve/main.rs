//! `ngen3 serve` over real sockets.
#![cfg(unix)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/parrot.rs"]
mod parrot;

mod client;
mod refusals;
mod stopping;

use client::Server;
use ngen3_data::Tokenizer;
use ngen3_data::chat::ChatTemplate;
use ngen3_model::{CheckpointMeta, Config, ParamList, TokenizerRef, checkpoint};
use parrot::parrot;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Positions of a parrot.
const WIDTH: usize = 64;

/// A folder with `parrot.pt`, which after a prompt of one token writes these tokens, over and over.
fn parrot_of(ids: &[u32]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = Config::new(1, 1, WIDTH, WIDTH, 50_257);
    parrot(&folder.path().join("parrot.pt"), &config, ids, TokenizerRef::Gpt2);
    folder
}

/// A server of a parrot of a text: after a prompt of one token, it writes the text.
fn parrot_server(text: &str) -> (TempDir, Server) {
    let folder = parrot_of(&Tokenizer::gpt2().encode(text).unwrap());
    let server = Server::start(folder.path(), "--model_checkpoint parrot.pt");
    (folder, server)
}

/// Saves a model with random weights; it chats if `chat`.
fn random_model(folder: &TempDir, name: &str, config: &Config, chat: bool) {
    let mut params = ParamList::new(config).init(1);
    // Large weights: texts depend on what is before them.
    params.iter_mut().for_each(|weight| *weight *= 10.0);
    let chat = chat.then(|| ChatTemplate::default_format("<|endoftext|>"));
    let meta = CheckpointMeta { chat, ..CheckpointMeta::default() };
    checkpoint::save(&folder.path().join(name), config, &params, &meta).unwrap();
}

/// A server of two random models: `base` and `talker`, which chats.
fn random_server() -> (TempDir, Server) {
    let folder = tempfile::tempdir().unwrap();
    let config = Config::new(2, 2, 16, 64, 50_257);
    random_model(&folder, "base.pt", &config, false);
    random_model(&folder, "talker.pt", &config, true);
    let server = Server::start(folder.path(), "--model_checkpoint base.pt --model_checkpoint talker.pt");
    (folder, server)
}

/// The first choice's text.
#[track_caller]
fn text(answer: &Value) -> &str {
    answer["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}"))
}

#[test]
fn the_small_endpoints_answer() {
    let (folder, server) = random_server();
    assert_eq!(server.get("/health").json(), json!({"status": "ok"}));
    let models = server.get("/v1/models").json();
    let listed: Vec<_> =
        models["data"].as_array().unwrap().iter().map(|m| (&m["id"], &m["chat"], &m["max_model_len"])).collect();
    assert_eq!(listed, [(&json!("base"), &json!(false), &json!(64)), (&json!("talker"), &json!(true), &json!(64))]);
    assert_eq!(server.get("/v1/models/talker").json()["id"], "talker");
    assert_eq!(server.get("/v1/models/nobody").error(404), "no model \"nobody\"; expected base, talker");

    let tokens = server.post("/tokenize", &json!({"model": "base", "prompt": "To be"})).json();
    assert_eq!(tokens, json!({"tokens": [2514, 307], "count": 2, "max_model_len": 64}));
    let turns = json!([{"role": "user", "content": "Hi"}]);
    let rendered = server.post("/tokenize", &json!({"model": "talker", "messages": turns})).json();
    let back = server.post("/detokenize", &json!({"model": "talker", "tokens": rendered["tokens"]})).json();
    assert_eq!(back, json!({"prompt": "user\nHi<|endoftext|>assistant\n"}));

    let page = server.get("/");
    assert!(page.headers.contains("content-type: text/html") && page.headers.contains("content-security-policy"));
    assert!(page.body.starts_with("<!doctype html>"));

    common::succeed(folder.path(), "tokenize --dataset plays --txt builtin:shakespeare");
    common::succeed(
        folder.path(),
        "train --variant 7M --data _data_plays_/data.bin --max_iters 2 --batch_size 1 --eval_iters 1 --eval_sample 5 --out deep.pt",
    );
    let runs = server.get("/runs").json();
    assert_eq!((&runs["runs"][0]["name"], &runs["runs"][0]["settings"]["max_iters"]), (&json!("deep.run"), &json!(2)));
    let metrics = server.get("/runs/metrics?run=deep.run").json();
    assert_eq!(metrics["lines"].as_array().unwrap().last().unwrap()["step"], 2);
    let error = server.get("/runs/metrics?run=..%2Fdeep.run").error(404);
    assert_eq!(error, "no such run, or it has none of these lines yet");
    let samples = server.get("/runs/samples?run=deep.run").json();
    assert_eq!(samples["offset"], runs["runs"][0]["samples"]);
    let [sample] = &samples["lines"].as_array().unwrap()[..] else { panic!("{samples}") };
    assert!(sample["step"] == 2 && sample["text"].as_str().is_some_and(|text| !text.is_empty()), "{sample}");

    server.post("/v1/completions", &json!({"model": "base", "prompt": "a", "max_tokens": 3}));
    assert_eq!(server.metric("ngen3_generated_tokens_total{model=\"base\"}"), 3.0);
    assert!(server.metric("ngen3_time_to_first_token_seconds_count{model=\"base\"}") >= 1.0);
}

#[test]
fn runs_are_served_without_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), "--runs .");
    assert_eq!(server.get("/v1/models").json()["data"], json!([]));
    assert_eq!(server.get("/runs").json()["runs"], json!([]));
    let error = server.post("/v1/completions", &json!({"prompt": "a"})).error(404);
    assert_eq!(error, "this server has no model (--model_checkpoint)");
}

#[test]
fn a_seed_gives_the_text_of_sample() {
    let (folder, server) = random_server();
    let line = "sample --model_checkpoint base.pt --prompt To --length 20 --seed 7 --num_samples 4 --temperature 0.9 --top_k 50 --threads 1";
    let (printed, _) = common::succeed(folder.path(), line);
    let samples: Vec<_> =
        printed.split("--- sample ").skip(1).map(|text| text.split_once("---\n").unwrap().1).collect();
    let body = json!({"model": "base", "prompt": "To", "max_tokens": 20, "seed": 7, "n": 4, "temperature": 0.9, "top_k": 50, "echo": true});
    let answer = server.post("/v1/completions", &body).json();
    assert_eq!(answer["usage"], json!({"prompt_tokens": 1, "completion_tokens": 80, "total_tokens": 81}));
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    for (choice, sample) in choices.iter().zip(samples) {
        assert_eq!(format!("{}\n", choice["text"].as_str().unwrap()), sample);
        assert_eq!(choice["finish_reason"], "length");
    }
    assert_ne!(choices[0]["text"], choices[1]["text"]);
    // Requests without a seed differ.
    let free = json!({"model": "base", "prompt": "To", "max_tokens": 20});
    let texts = [0, 1].map(|_| text(&server.post("/v1/completions", &free).json()).to_owned());
    assert_ne!(texts[0], texts[1]);
}

#[test]
fn prompts_may_be_lists_and_token_ids() {
    let (_folder, server) = random_server();
    let of = |prompt: Value| {
        let body = json!({"model": "base", "prompt": prompt, "max_tokens": 8, "seed": 1});
        let answer = server.post("/v1/completions", &body).json();
        let texts = answer["choices"].as_array().unwrap_or_else(|| panic!("{answer}")).iter();
        texts.map(|choice| choice["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let (a, b) = (of(json!("To be")), of(json!("Now")));
    assert_eq!(of(json!(["To be", "Now"])), [a.clone(), b.clone()].concat());
    let ids = ["To be", "Now"].map(|text| Tokenizer::gpt2().encode(text).unwrap());
    assert_eq!(of(json!(ids[0])), a);
    assert_eq!(of(json!(ids)), [a, b].concat());
    assert_eq!(of(json!("")).len(), 1, "an empty prompt begins a document");
}

#[test]
fn a_stream_has_the_same_text_and_its_usage() {
    let (_folder, server) = random_server();
    let body = json!({"model": "base", "prompt": "To", "max_tokens": 20, "seed": 3, "n": 2});
    let whole = server.post("/v1/completions", &body).json();
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    streamed["stream_options"] = json!({"include_usage": true});
    let mut events = server.post("/v1/completions", &streamed).events();
    let last = events.pop().unwrap();
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &whole["usage"]));
    let mut texts = [String::new(), String::new()];
    let mut finished = 0;
    for event in &events {
        assert_eq!((&event["object"], &event["usage"]), (&json!("text_completion"), &Value::Null));
        let choice = &event["choices"][0];
        texts[choice["index"].as_u64().unwrap() as usize] += choice["text"].as_str().unwrap();
        finished += usize::from(choice["finish_reason"] == "length");
    }
    assert_eq!(finished, 2);
    assert_eq!(json!(texts), json!([whole["choices"][0]["text"], whole["choices"][1]["text"]]));
    streamed.as_object_mut().unwrap().remove("stream_options");
    let without = server.post("/v1/completions", &streamed).events();
    assert!(without.iter().all(|event| event.get("usage").is_none()));
}

#[test]
fn a_conversation_is_answered_whole_and_streamed() {
    let (_folder, server) = random_server();
    let parts = json!([{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]);
    let messages = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]);
    let body = json!({"model": "talker", "messages": messages, "max_completion_tokens": 12, "seed": 5, "logprobs": true, "top_logprobs": 2});
    let whole = server.post("/v1/chat/completions", &body).json();
    assert_eq!(whole["object"], "chat.completion");
    let choice = &whole["choices"][0];
    assert_eq!((&choice["message"]["role"], &choice["finish_reason"]), (&json!("assistant"), &json!("length")));
    let tokens = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(tokens.len(), 12);
    for token in tokens {
        let top = token["top_logprobs"].as_array().unwrap();
        assert!(token["logprob"].as_f64().unwrap() <= top[0]["logprob"].as_f64().unwrap() && top.len() == 2, "{token}");
    }
    let plain = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]);
    let same = json!({"model": "talker", "messages": plain, "max_tokens": 12, "seed": 5});
    let same = server.post("/v1/chat/completions", &same).json();
    assert_eq!(same["choices"][0]["message"]["content"], choice["message"]["content"]);

    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let events = server.post("/v1/chat/completions", &streamed).events();
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let deltas = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
    assert_eq!(json!(deltas.collect::<String>()), choice["message"]["content"]);
    let end = &events.last().unwrap()["choices"][0];
    assert_eq!((&end["delta"], &end["finish_reason"]), (&json!({}), &json!("length")));
    let logprobs = events.iter().filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array()).flatten();
    assert_eq!(json!(logprobs.collect::<Vec<_>>()), json!(tokens));
}

#[test]
fn echo_scores_the_prompt() {
    let (_folder, server) = random_server();
    let body = json!({"model": "base", "prompt": "To be or not", "max_tokens": 0, "echo": true, "logprobs": 2});
    let answer = server.post("/v1/completions", &body).json();
    let choice = &answer["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("To be or not"), &json!("length")));
    let logprobs = &choice["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["To", " be", " or", " not"]));
    assert_eq!(logprobs["text_offset"], json!([0, 2, 5, 8]));
    assert_eq!((&logprobs["token_logprobs"][0], &logprobs["top_logprobs"][0]), (&Value::Null, &Value::Null));
    for position in 1..4 {
        let own = logprobs["token_logprobs"][position].as_f64().unwrap();
        let top = logprobs["top_logprobs"][position].as_object().unwrap();
        assert!((own < 0.0) && (2..=3).contains(&top.len()), "{logprobs}");
        assert_eq!(top[logprobs["tokens"][position].as_str().unwrap()].as_f64(), Some(own));
    }
    // With a token more, the scores of the prompt are the same.
    let more = json!({"model": "base", "prompt": "To be or not", "max_tokens": 1, "echo": true, "logprobs": 2, "stream": true});
    let events = server.post("/v1/completions", &more).events();
    let texts: String = events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    assert!(texts.starts_with("To be or not") && texts.len() > 12, "{texts}");
    assert_eq!(events[0]["choices"][0]["logprobs"]["token_logprobs"], logprobs["token_logprobs"]);
    let offsets = events.iter().filter_map(|event| event["choices"][0]["logprobs"]["text_offset"].as_array()).flatten();
    assert_eq!(json!(offsets.collect::<Vec<_>>()), json!([0, 2, 5, 8, 12]));
}

/// lm_eval takes the last token for a generated one.
#[test]
fn echo_scores_the_stop_token_too() {
    let folder = parrot_of(&[50_256]);
    let server = Server::start(folder.path(), "--model_checkpoint parrot.pt");
    let body = json!({"prompt": "x", "temperature": 0, "max_tokens": 1, "echo": true, "logprobs": 1});
    let choice = server.post("/v1/completions", &body).json()["choices"][0].clone();
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("x"), &json!("stop")));
    assert_eq!(choice["logprobs"]["tokens"], json!(["x", "<|endoftext|>"]));
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 1]));
    assert!(choice["logprobs"]["token_logprobs"][1].as_f64().is_some_and(|value| value < 0.0), "{choice}");
}

/// The cache has room for one context: a chat without a limit does not reserve it, and is preempted for an older one.
#[test]
fn chats_without_a_limit_run_at_once_in_a_small_cache() {
    let folder = tempfile::tempdir().unwrap();
    // 4 KiB for a token: a context of 256 takes all of --cache_mib 1.
    random_model(&folder, "talker.pt", &Config::new(8, 2, 64, 256, 50_257), true);
    let server = Server::start(folder.path(), "--model_checkpoint talker.pt --cache_mib 1");
    let ask = &|at: usize| {
        let turns = json!([{"role": "user", "content": format!("{at}, tell me all")}]);
        let body = json!({"messages": turns, "seed": at, "stream": at % 2 == 1});
        let answer = server.post("/v1/chat/completions", &body);
        let choices = if at % 2 == 1 { answer.events() } else { vec![answer.json()] };
        let choices = choices.iter().map(|choice| &choice["choices"][0]);
        let text = |choice: &Value| {
            choice["delta"]["content"].as_str().or(choice["message"]["content"].as_str()).map(str::to_owned)
        };
        choices.filter_map(text).collect::<String>()
    };
    let preemptions = || server.metric("ngen3_preemptions_total");
    let alone: Vec<String> = (0..4).map(ask).collect();
    assert_eq!(preemptions(), 0.0);
    let together: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|at| scope.spawn(move || ask(at))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(together, alone);
    assert!(together.iter().all(|text| text.len() > 256), "up to the context: {together:?}");
    assert!(preemptions() > 0.0);
    // What remains are prompts that may come again.
    assert!(server.metric("ngen3_cache_use{") < 0.5);
}

#[test]
fn a_stop_text_ends_across_tokens_and_is_not_shown() {
    let (_folder, server) = parrot_server(" one two three four");
    let body = json!({"prompt": "a", "temperature": 0, "max_tokens": 20, "stop": ["o thr", "never"], "logprobs": 0});
    let answer = server.post("/v1/completions", &body).json();
    let choice = &answer["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(" one tw"), &json!("stop")));
    assert_eq!(choice["logprobs"]["tokens"], json!([" one", " two"]), "with the token that the stop text cuts");
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let events = server.post("/v1/completions", &streamed).events();
    let texts: Vec<_> = events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    assert_eq!(texts.concat(), " one tw");
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "stop");
    // Begins like the stop text, but goes on otherwise.
    let other = json!({"prompt": "a", "temperature": 0, "max_tokens": 3, "stop": "o thx"});
    assert_eq!(text(&server.post("/v1/completions", &other).json()), " one two three");
}

#[test]
fn a_character_that_the_limit_cuts_is_replaced_and_never_split() {
    let gpt2 = Tokenizer::gpt2();
    let emoji = gpt2.encode("🙂").unwrap();
    assert!(emoji.len() > 1, "several tokens");
    let ids: Vec<u32> = emoji.iter().copied().chain([64]).collect();
    let folder = parrot_of(&ids);
    let server = Server::start(folder.path(), "--model_checkpoint parrot.pt");
    let body = |tokens: usize| json!({"prompt": "a", "temperature": 0, "max_tokens": tokens, "stream": true});
    let texts = |tokens: usize| {
        let events = server.post("/v1/completions", &body(tokens)).events();
        events.iter().map(|event| event["choices"][0]["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(texts(emoji.len()).concat(), "🙂");
    let cut = texts(emoji.len() - 1);
    assert_eq!(cut.concat(), "\u{fffd}", "as sample prints it");
    assert_eq!(texts(emoji.len() + 1).concat(), "🙂a");
}

#[test]
fn the_end_of_a_text_is_never_shown() {
    let mut ids = Tokenizer::gpt2().encode(" one two").unwrap();
    ids.push(50_256);
    let folder = parrot_of(&ids);
    let server = Server::start(folder.path(), "--model_checkpoint parrot.pt");
    let answer = server
        .post("/v1/completions", &json!({"prompt": "x", "temperature": 0, "max_tokens": 30, "logprobs": 1}))
        .json();
    let choice = &answer["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(" one two"), &json!("stop")));
    assert_eq!(choice["logprobs"]["tokens"], json!([" one", " two"]));
    assert_eq!(answer["usage"]["completion_tokens"], 2);
}
