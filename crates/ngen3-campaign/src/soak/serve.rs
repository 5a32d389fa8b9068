//! A server under load: many clients, some of which go away in the middle of an answer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::figures::{compare, scenario};
use crate::campaign::Campaign;
use crate::process::Gauge;
use crate::report::Report;
use crate::server::Server;

/// Clients at a time.
const CLIENTS: u64 = 8;

/// Longest wait for connections to be closed.
const CLOSING: Duration = Duration::from_secs(180);

/// Sends the requests: an eighth of them first, to measure the start, then the others.
///
/// # Errors
/// If the server does not start or stop.
pub fn run(campaign: &Campaign, requests: u64, report: &mut Report) -> Result<()> {
    report.row("serve");
    let scenario = scenario("serve").context("no scenario of serve")?;
    let place = campaign.place("serve", 0);
    campaign.base().write(&place.join("work"))?;
    crate::stage::prepare(&place)?;
    let again = format!("scripts/campaign soak --seed {}{}", campaign.seed, campaign.arguments);
    let server = Server::start(&campaign.program, &place, scenario)?;
    let began = Instant::now();
    let idle = Gauge::read(server.child.id())?;
    let mut failed = load(&server, requests / 8);
    let start = settled(&server, idle.files)?;
    failed += load(&server, requests - requests / 8);
    let end = settled(&server, start.files)?;
    report.add("units", requests);
    report.add("seconds", began.elapsed().as_secs());
    compare(report, start, end, &again);
    if failed > 0 {
        report.lose(&format!("{failed} requests were not answered"), &again);
    }
    server.stop()?;
    report.row_done();
    Ok(())
}

/// Sends requests from some threads; returns the number of those that were not answered.
fn load(server: &Server, requests: u64) -> u64 {
    let (next, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= requests {
                        return;
                    }
                    let answered = match number % 8 {
                        // It goes away at once.
                        7 => server.send(30, true).map(drop),
                        part => server.ask(4 + 3 * part as u32, part % 2 == 0),
                    };
                    failed.fetch_add(u64::from(answered.is_err()), Ordering::Relaxed);
                }
            });
        }
    });
    failed.into_inner()
}

/// Returns the server's figures once connections are closed.
fn settled(server: &Server, files: usize) -> Result<Gauge> {
    let start = Instant::now();
    loop {
        let gauge = Gauge::read(server.child.id())?;
        if gauge.files <= files || start.elapsed() > CLOSING {
            return Ok(gauge);
        }
        thread::sleep(Duration::from_millis(50));
    }
}
