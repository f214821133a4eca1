//! What is left of the engine's speed while guests compute all the time: one stream's tokens a second, in turn with such guests and
//! without them. Not here: calls at a fixed rate.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ::hostile::Source;
use serde_json::{Value, json};

use super::neighbours::{put, upload};
use crate::Outcome;
use crate::load::{Http, with_key};
use crate::process::Server;
use crate::report::{rounded, spread_json};
use crate::statistics::Spread;

/// Guests at once, many more than threads for them.
const GUESTS: usize = 16;
const ROUNDS: usize = 7;
const TOKENS: usize = 48;
/// How long they may spin each time.
const CALL_CPU_MS: u64 = 200;
/// Until all of them spin.
const BEGIN: Duration = Duration::from_millis(300);

/// Tokens a second, round by round.
pub(super) struct Speeds {
    quiet: Vec<f64>,
    again: Vec<f64>,
    beside: Vec<f64>,
    /// CPU seconds of the guests' threads for each second on the wall, while they spun.
    guests_cpu: f64,
    steps: [f64; 2],
}

impl Speeds {
    /// What spinning guests leave.
    pub(super) fn left(&self) -> Option<Spread> {
        Spread::of_median_ratio(&self.beside, &self.quiet)
    }

    pub(super) fn json(&self) -> Value {
        json!({"spinning_guests": GUESTS, "tokens_per_s_without": spread_json(Spread::of(&self.quiet)),
            "tokens_per_s_beside": spread_json(Spread::of(&self.beside)),
            "control": spread_json(Spread::of_median_ratio(&self.again, &self.quiet)),
            "engine_steps_without_and_beside": self.steps, "guests_cpu_s_per_s": rounded(self.guests_cpu)})
    }
}

/// Measures both sides in turn, and one of them twice.
///
/// # Errors
/// If anything is refused.
pub(super) fn measure(http: &Http, server: &Server) -> Outcome<Speeds> {
    let (runtime, client) = http.parts();
    let digest = runtime.block_on(upload(client, &server.target, Source::Fixture("spin").component()?))?;
    let digest = digest.map_err(|(status, body)| format!("spin: {status} {body}"))?;
    let manifest = json!({"plugin": digest, "limits": {"call_cpu_ms_max": CALL_CPU_MS}});
    runtime.block_on(put(client, &server.target, "spinners", &manifest))?;
    let mut speeds =
        Speeds { quiet: Vec::new(), again: Vec::new(), beside: Vec::new(), guests_cpu: 0.0, steps: [0.0, 0.0] };
    stream(http, server)?;
    let mut shares = Vec::new();
    for _ in 0..ROUNDS {
        let before = steps(http, server)?;
        speeds.quiet.push(stream(http, server)?);
        let between = steps(http, server)?;
        let (speed, share) = beside(http, server)?;
        speeds.beside.push(speed);
        shares.push(share);
        speeds.steps = [speeds.steps[0] + between - before, speeds.steps[1] + steps(http, server)? - between];
        speeds.again.push(stream(http, server)?);
    }
    speeds.guests_cpu = shares.iter().sum::<f64>() / shares.len().max(1) as f64;
    Ok(speeds)
}

fn steps(http: &Http, server: &Server) -> Outcome<f64> {
    let (_, text) = http.get(&server.target, "/metrics")?;
    Ok(crate::soak::requests::metric(&text, "tenon_engine_steps_total").unwrap_or_default())
}

/// Tokens a second of one request.
fn stream(http: &Http, server: &Server) -> Outcome<f64> {
    let body = json!({"model": "base", "prompt": "The sea is", "max_tokens": TOKENS, "temperature": 0, "ignore_eos": true,
        "speculation": false});
    let begun = Instant::now();
    let (status, body) = http.post(&server.target, "/v1/completions", &body)?;
    if status != 200 {
        return Err(format!("a stream beside spinning guests: {status} {body}").into());
    }
    Ok(TOKENS as f64 / begun.elapsed().as_secs_f64())
}

/// The same while guests spin, and how much CPU their threads had.
fn beside(http: &Http, server: &Server) -> Outcome<(f64, f64)> {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let spinning = scope.spawn(|| spin(server, &is_over).map_err(|error| error.to_string()));
        std::thread::sleep(BEGIN);
        let (begun, before) = (Instant::now(), guest_threads_cpu_s(server.pid()));
        let speed = stream(http, server);
        let share = (guest_threads_cpu_s(server.pid()) - before) / begun.elapsed().as_secs_f64();
        is_over.store(true, Ordering::Relaxed);
        spinning.join().map_err(|_| "the spinning callers panicked")??;
        Ok((speed?, share))
    })
}

/// Calls of guests that spin until they are stopped, so many at a time.
fn spin(server: &Server, is_over: &AtomicBool) -> Outcome {
    let http = Http::new()?;
    let (runtime, client) = http.parts();
    let target = &server.target;
    runtime.block_on(async {
        let callers = (0..GUESTS).map(|_| async {
            while !is_over.load(Ordering::Relaxed) {
                let url = format!("{}/v1/functions/spinners/invoke", target.url);
                with_key(client.post(url), target).json(&json!({"input": "route"})).send().await?.bytes().await?;
            }
            Outcome::Ok(())
        });
        futures::future::try_join_all(callers).await.map(drop)
    })
}

/// CPU time of the threads that guests run on; they have a name of their own.
fn guest_threads_cpu_s(pid: u32) -> f64 {
    const TICKS_PER_S: f64 = 100.0;
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let ticks = tasks.filter_map(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
        let mut times = rest.split(' ').skip(11).filter_map(|ticks| ticks.parse::<f64>().ok());
        (name == "plugin").then(|| Some(times.next()? + times.next()?)).flatten()
    });
    ticks.sum::<f64>() / TICKS_PER_S
}
