//! `ngen3 serve`: models over HTTP, as the OpenAI API, and a page to talk to them and to watch training.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::builder::NonEmptyStringValueParser;
use ngen3_model::Checkpoint;
use ngen3_serve::{ModelSpec, ServeConfig, Server};

use crate::decoding::DecodeFlags;
use crate::error_line::one_line;
use crate::progress::write_line;
use crate::{interrupt, model};

/// Environment variable with the key, which a command line would show to other users of the machine.
const KEY_VARIABLE: &str = "NGEN3_API_KEY";

/// Serve models over HTTP: the OpenAI API, and a page to chat
///
/// Programs use it as they use OpenAI's: with the base URL http://127.0.0.1:8000/v1. The page, at http://127.0.0.1:8000, chats with a
/// model, compares two, and shows the training runs below the working directory as they go on. Requests that run at the same
/// time are computed together. Ctrl-C lets those under way end.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
pub struct Args {
    /// Model to serve: .pt, .safetensors, .gguf, a Hugging Face folder, or a hub name; may be repeated
    #[arg(long, value_name = "MODEL", required_unless_present = "runs")]
    model_checkpoint: Vec<PathBuf>,
    /// Folder whose training runs (*.run, at any depth) the page shows [default: the working directory]
    #[arg(long, value_name = "DIR")]
    runs: Option<PathBuf>,
    /// Address to listen on. Any but a loopback address requires a key, or --no_auth
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Port; 0 for any that is free
    #[arg(long, value_name = "N", default_value_t = 8000)]
    port: u16,
    /// Key that requests must carry (Authorization: Bearer KEY) [default: the environment variable NGEN3_API_KEY, which other
    /// users of the machine cannot see]
    #[arg(long, value_name = "KEY", value_parser = NonEmptyStringValueParser::new())]
    api_key: Option<String>,
    /// Allow everyone who can reach --host to use the models
    #[arg(long, conflicts_with = "api_key")]
    no_auth: bool,
    /// Origin whose pages may call the API from a browser, such as https://example.com, or * for all; may be repeated
    #[arg(long, value_name = "ORIGIN", value_parser = NonEmptyStringValueParser::new())]
    cors_origin: Vec<String>,
    /// Maximum texts of a model that wait or run; requests beyond it get status 503
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..))]
    max_requests: u16,
    /// Maximum texts of a model that run at once
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    max_running: u16,
    /// Maximum new tokens of a text, whatever the request says [default: as many as fit the context]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,
    /// Memory for a model's keys and values, in MiB; when it is full, the text that arrived last is preempted. At least those of one
    /// context are kept
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    cache_mib: u32,
    /// Maximum size of a request's body, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    max_body_mib: u16,
    /// Maximum time of a request, in seconds
    #[arg(long, value_name = "S", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    timeout_s: u32,
    /// Time that requests have to end after Ctrl-C, in seconds
    #[arg(long, value_name = "S", default_value_t = 30)]
    drain_s: u32,
    #[command(flatten)]
    decode: DecodeFlags,
}

const EXAMPLES: &str = "\
Examples:
  ngen3 serve --model_checkpoint 7M_model.pt
  ngen3 serve --model_checkpoint 7M_model.pt --model_checkpoint finetuned_7M_model.pt
  ngen3 serve --runs .
  NGEN3_API_KEY=secret ngen3 serve --model_checkpoint 7M_model.pt --host 0.0.0.0";

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let api_key = args.api_key.clone().or_else(|| std::env::var(KEY_VARIABLE).ok()).filter(|_| !args.no_auth);
    ensure!(api_key.as_deref() != Some(""), "{KEY_VARIABLE}: expected a key, got an empty text");
    if !args.host.is_loopback() && api_key.is_none() {
        ensure!(
            args.no_auth,
            "--host {}: other machines can reach this address; set a key (--api_key or {KEY_VARIABLE}), or let everyone in \
             (--no_auth)",
            args.host
        );
        write_line(&format!(
            "warning: everyone who can reach {} can use the models and see the runs (--no_auth)",
            args.host
        ));
    }
    // Tokens are sampled on the global pool, those of all texts at once.
    args.decode.threads.start()?;
    let runs = args.runs.clone().unwrap_or_else(|| PathBuf::from("."));
    ensure!(runs.is_dir(), "--runs {}: expected a folder", runs.display());
    let address = (args.host, args.port);
    let listener = TcpListener::bind(address).with_context(|| {
        format!("cannot listen on {}:{} (is another server running? try --port 0)", args.host, args.port)
    })?;
    let url = format!("http://{}", listener.local_addr()?);

    let mut names = BTreeSet::new();
    let models = args.model_checkpoint.iter().map(|path| spec(path, args.decode, &mut names));
    let models = models.collect::<anyhow::Result<Vec<_>>>()?;
    let bytes = |mib: usize| mib.saturating_mul(1 << 20);
    let config = ServeConfig {
        api_key,
        cors_origins: args.cors_origin,
        max_body: bytes(args.max_body_mib.into()),
        max_tokens: args.max_tokens.map_or(usize::MAX, |tokens| tokens as usize),
        max_requests: args.max_requests.into(),
        max_running: args.max_running.into(),
        cache_bytes: bytes(args.cache_mib as usize),
        request_time: Duration::from_secs(args.timeout_s.into()),
        drain_time: Duration::from_secs(args.drain_s.into()),
        runs,
        ..ServeConfig::default()
    };
    let server = Server::open(listener, config, models)?;
    let stop = interrupt::watch()?;
    let served = if names.is_empty() { "the runs".to_owned() } else { Vec::from_iter(names).join(", ") };
    write_line(&format!("serving {served} at {url} (OpenAI API: {url}/v1); Ctrl-C stops"));
    if !server.run(&stop)? {
        write_line(&format!("note: some requests did not end within {} s (--drain_s)", args.drain_s));
    }
    Ok(())
}

/// Loads a model; it is opened later, on its own thread.
fn spec(path: &Path, decode: DecodeFlags, names: &mut BTreeSet<String>) -> anyhow::Result<ModelSpec> {
    let loaded = decode.load(path, None)?;
    let Checkpoint { config, meta, .. } = &loaded.checkpoint;
    let Some(tokenizer) = model::tokenizer(path, config, meta)? else {
        bail!("{}: no recorded tokenizer, so it cannot generate text", path.display());
    };
    let name = loaded.found.name.clone();
    ensure!(
        names.insert(name.clone()),
        "{}: another model is named {name} too; requests could not tell them apart, so rename the file",
        path.display()
    );
    let (config, chat) = (config.clone(), meta.chat.clone());
    let open = Box::new(move || decode.open(loaded).map_err(|error| one_line(&error)));
    Ok(ModelSpec { name, config, tokenizer, chat, open })
}
