//! Runs a server: accepts connections until it is asked to stop, then lets requests end.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use ngen3_generate::BatcherLimits;
use ngen3_model::Config;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{interval, sleep, timeout};
use tokio_io_timeout::TimeoutStream;

use crate::api::respond::seconds_since_1970;
use crate::config::ServeConfig;
use crate::engine::Engine;
use crate::metrics::Metrics;
use crate::routes::router;
use crate::served::{ModelSpec, ServedModel};
use crate::state::App;

/// Error of a server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A model that cannot be opened.
    #[error("{name}: {reason}")]
    Model {
        /// Its name.
        name: String,
        /// Reason.
        reason: String,
    },
    /// The server cannot run.
    #[error("cannot serve: {0}")]
    Io(#[from] io::Error),
}

/// Threads for connections, which compute little.
const WORKERS: usize = 2;
/// Threads for encoding prompts and reading files.
const BLOCKING_THREADS: usize = 8;
/// Prompt tokens read per step of a model.
const PROMPT_TOKENS: usize = 256;
/// Longest head of a request.
const MAX_HEAD: usize = 64 << 10;
/// Time between two looks at the request to stop.
const LOOK: Duration = Duration::from_millis(50);

/// A server whose models are open.
pub struct Server {
    app: Arc<App>,
    listener: TcpListener,
}

impl Server {
    /// Opens the models, each on its own thread.
    ///
    /// # Errors
    /// [`Error::Model`] for one that cannot be opened.
    pub fn open(listener: TcpListener, config: ServeConfig, models: Vec<ModelSpec>) -> Result<Self, Error> {
        let metrics = Metrics::new();
        let open = |ModelSpec { name, config: shape, tokenizer, chat, open }: ModelSpec| {
            let failed = |reason: String| Error::Model { name: name.clone(), reason };
            let limits = BatcherLimits {
                running: config.max_running,
                cache_tokens: (config.cache_bytes / token_bytes(&shape)).max(shape.block_size),
                prompt_tokens: PROMPT_TOKENS,
            };
            let chat = chat.map(|format| ngen3_data::chat::ChatEncoder::new(tokenizer.clone(), Some(format)));
            let chat = chat.transpose().map_err(|error| failed(error.to_string()))?;
            let engine = Engine::start(&name, open, limits, config.max_requests, metrics.of_model(&name));
            let engine = engine.map_err(failed)?;
            Ok(Arc::new(ServedModel { config: shape, tokenizer, chat, engine, name }))
        };
        let models = models.into_iter().map(open).collect::<Result<Vec<_>, Error>>()?;
        let is_loopback = listener.local_addr()?.ip().is_loopback();
        let app = App { config, models, metrics, started: seconds_since_1970(), is_loopback };
        Ok(Self { app: Arc::new(app), listener })
    }

    /// Serves until `stop` is set; then accepts no more requests and waits for those under way, at most
    /// [`ServeConfig::drain_time`]. Returns `false` if some did not end in that time.
    ///
    /// # Errors
    /// [`Error::Io`] if the server cannot start.
    pub fn run(self, stop: &AtomicBool) -> Result<bool, Error> {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(WORKERS).max_blocking_threads(BLOCKING_THREADS).enable_all().build()?;
        let ended = runtime.block_on(self.serve(stop));
        // Requests that did not end in time are dropped.
        runtime.shutdown_background();
        ended
    }

    async fn serve(self, stop: &AtomicBool) -> Result<bool, Error> {
        self.listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        let (app, router) = (Arc::clone(&self.app), router(self.app));
        let places = Arc::new(Semaphore::new(app.config.max_connections));
        let connections = GracefulShutdown::new();
        let accept = async {
            loop {
                // Closed only when the server ends.
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                match listener.accept().await {
                    Ok((stream, _)) => serve_connection(stream, place, &router, &app.config, &connections),
                    // Such as too many open files: others may be closed soon.
                    Err(_) => sleep(Duration::from_millis(100)).await,
                }
            }
        };
        let stopped = async {
            let mut look = interval(LOOK);
            while !stop.load(Ordering::Relaxed) {
                look.tick().await;
            }
        };
        tokio::select! {
            () = accept => {}
            () = stopped => {}
        }
        drop(listener);
        Ok(timeout(app.config.drain_time, connections.shutdown()).await.is_ok())
    }
}

/// Returns the bytes of a token's keys and values in all layers.
fn token_bytes(shape: &Config) -> usize {
    (2 * shape.n_layer * shape.kv_width() * size_of::<f32>()).max(1)
}

fn serve_connection(
    stream: TcpStream,
    place: OwnedSemaphorePermit,
    router: &axum::Router,
    config: &ServeConfig,
    connections: &GracefulShutdown,
) {
    // Tokens are small and should leave at once.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(config.io_time));
    let io = TokioIo::new(Box::pin(stream));
    let service = TowerToHyperService::new(router.clone());
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(config.io_time).max_buf_size(MAX_HEAD);
    let connection = connections.watch(http.serve_connection(io, service));
    tokio::spawn(async move {
        // A connection that breaks concerns its client alone.
        let _ = connection.await;
        drop(place);
    });
}
