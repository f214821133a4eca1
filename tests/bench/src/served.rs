//! Load over HTTP: our server with every mix of adapters, and beside llama.cpp's at its best number of slots and in its best
//! format. Not here: the load itself (`load`), the processes (`process`).

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use crate::adapters::RandomAdapter;
use crate::calm::Calm;
use crate::load::{Http, Served, Shape};
use crate::ours::Mix;
use crate::peer::{FORMATS, Installed};
use crate::process::{Server, alias};
use crate::report::{Report, rounded, spread_json};
use crate::rounds::interleaved;
use crate::statistics::{Bound, Spread};
use crate::{Given, Outcome};

const STREAMS: [usize; 3] = [1, 8, 32];
const SLOTS: [usize; 3] = [8, 16, 32];
const STREAMS_MAX: usize = 32;
const OUTPUT_TOKENS: usize = 64;
const OUTPUT_TOKENS_QUICK: usize = 32;
/// Of a request on llama.cpp's server: prompt, output, and some more.
const SLOT_TOKENS: usize = 256;
/// Adapters on each server.
pub(crate) const ADAPTERS: usize = 32;
const DISTINCT: Mix = Mix::Distinct(usize::MAX);

const BASE_BAR: f64 = 2.5;
const FIRST_TOKEN_BAR: f64 = 0.5;
const DISTINCT_BAR: f64 = 6.0;
const BASE_NAME: &str = "32 streams on the base: tokens/s over llama-server's";
const FIRST_TOKEN_NAME: &str = "32 streams on the base: p95 time to first token over llama-server's";
const DISTINCT_NAME: &str = "32 streams on 32 distinct adapters: tokens/s over llama-server's";

/// How much is measured.
pub(crate) struct Amount {
    pub(crate) threads: usize,
    pub(crate) rounds: usize,
    pub(crate) requests_each: usize,
    /// Shorter answers, and llama.cpp's fastest format with most slots without looking for better ones.
    pub(crate) is_quick: bool,
}

/// Measures our server, and llama.cpp's if it is installed; `formats` of it, the fastest first.
///
/// # Errors
/// If a server does not come up or a request fails.
pub(crate) fn run(
    given: &Given,
    config: &model::ModelConfig,
    peer: Option<(&Installed, &[&str])>,
    amount: &Amount,
    report: &mut Report,
) -> Outcome {
    println!("\n== served over HTTP");
    let http = Http::new()?;
    let settings = [("THREADS", amount.threads.to_string()), ("ADAPTER_SLOTS", ADAPTERS.to_string())];
    let tenon = Server::tenon(&http, &given.tenon, &given.base, &settings)?;
    for number in 0..ADAPTERS {
        tenon.upload(&http, &RandomAdapter::new(number as u64, config), number)?;
    }
    let mut load = Load { http, amount, turn: 0, without_speculation: false };
    load.without_speculation = load.knows_speculation(&tenon)?;
    for streams in STREAMS {
        for mix in [Mix::Base, Mix::Shared, DISTINCT, Mix::TwoEach] {
            let served = load.run(&tenon, streams, mix, amount.requests_each)?;
            row("tenon", streams, mix, &[served], report);
        }
    }
    match peer.map(|(installed, formats)| (installed, formats, installed.server.clone())) {
        Some((installed, formats, Ok(program))) => {
            let candidates = Candidates { program, installed, formats, adapters: gguf_files(installed, config)? };
            beside(&mut load, &tenon, &candidates, report)?;
        }
        Some((_, _, Err(why))) => missing(report, &format!("llama-server could not be built: {why}")),
        None => missing(report, "run with --peer"),
    }
    let peak = tenon.peak_bytes().map(|bytes| rounded(bytes as f64 / 1e6));
    report.row(json!({"side": "tenon", "peak_resident_mb": peak, "adapters_uploaded": ADAPTERS}));
    Ok(())
}

/// Puts load on servers, each time with other prompts.
struct Load<'a> {
    http: Http,
    amount: &'a Amount,
    turn: usize,
    without_speculation: bool,
}

impl Load<'_> {
    fn run(&mut self, server: &Server, streams: usize, mix: Mix, requests_each: usize) -> Outcome<Served> {
        self.turn += 1;
        let shape = Shape {
            streams,
            requests_each,
            output_tokens: if self.amount.is_quick { OUTPUT_TOKENS_QUICK } else { OUTPUT_TOKENS },
            mix,
            adapters: ADAPTERS,
            turn: self.turn,
            without_speculation: self.without_speculation,
        };
        self.http.load(&server.target, shape)
    }

    /// Whether a request may leave speculation out. The comparison does: repeated text would flatter us.
    fn knows_speculation(&self, server: &Server) -> Outcome<bool> {
        let body = json!({"model": "base", "prompt": "One", "max_tokens": 1, "speculation": false});
        Ok(self.http.post(&server.target, "/v1/completions", &body)?.0 == 200)
    }
}

/// What llama.cpp's server may be started with.
struct Candidates<'a> {
    program: PathBuf,
    installed: &'a Installed,
    formats: &'a [&'a str],
    adapters: Vec<PathBuf>,
}

impl Candidates<'_> {
    fn start(&self, load: &Load<'_>, format: &str, slots: usize, with_adapters: bool) -> Outcome<Server> {
        let models = &self.installed.models;
        let model = models.iter().find(|(name, _)| name == format).ok_or("a format of llama.cpp's has no file")?;
        let adapters = if with_adapters { &self.adapters[..] } else { &[] };
        let sizes = (slots, SLOT_TOKENS, load.amount.threads);
        Server::llama(&load.http, &self.program, &model.1, sizes, adapters)
    }

    /// The server with the most tokens a second of the given formats and all numbers of slots, still running.
    fn best(&self, load: &mut Load<'_>, formats: &[&str], mix: Mix, report: &mut Report) -> Outcome<(String, Server)> {
        let mut best: Option<(f64, String, Server)> = None;
        for format in formats {
            let slots = if load.amount.is_quick { SLOTS.get(2..) } else { SLOTS.get(..) };
            for slots in slots.unwrap_or_default().iter().copied() {
                let server = self.start(load, format, slots, mix != Mix::Base)?;
                let served = load.run(&server, STREAMS_MAX, mix, 1)?;
                let name = format!("llama-server {format}, {slots} slots");
                row(&format!("{name}, one try"), STREAMS_MAX, mix, std::slice::from_ref(&served), report);
                if best.as_ref().is_none_or(|(fastest, ..)| served.tokens_per_s > *fastest) {
                    best = Some((served.tokens_per_s, name, server));
                }
            }
        }
        best.map(|(_, name, server)| (name, server)).ok_or_else(|| "no format of llama.cpp's".into())
    }
}

/// 32 streams on both servers in turn: on the base, and on as many adapters.
fn beside(load: &mut Load<'_>, tenon: &Server, candidates: &Candidates<'_>, report: &mut Report) -> Outcome {
    let count = if load.amount.is_quick { 1 } else { 2 };
    let formats = candidates.formats.get(..count).unwrap_or(candidates.formats);
    let (name, server) = candidates.best(load, formats, Mix::Base, report)?;
    let base = duel(load, tenon, (&name, &server), Mix::Base, report)?;
    report.bar(BASE_NAME, Bound::AtLeast(BASE_BAR), base.tokens.ok_or("no rounds"));
    report.bar(FIRST_TOKEN_NAME, Bound::AtMost(FIRST_TOKEN_BAR), base.first_token.ok_or("no rounds"));
    drop(server);
    let format = name.split([' ', ',']).nth(1).unwrap_or_default();
    let (name, server) = candidates.best(load, &[format], DISTINCT, report)?;
    // On the very file that we serve: another format of the base has words of its own.
    let same_file = candidates.start(load, FORMATS[0], 1, true)?;
    let alike = alike(load, tenon, &same_file)?;
    drop(same_file);
    report.row(json!({"adapters": "the same on both servers", "first_texts_alike": alike, "of": ALIKE_ASKED}));
    let distinct = duel(load, tenon, (&name, &server), DISTINCT, report)?;
    report.bar(DISTINCT_NAME, Bound::AtLeast(DISTINCT_BAR), distinct.tokens.ok_or("no rounds"));
    Ok(())
}

/// Adapters whose first words after one prompt are asked for on both servers.
const ALIKE_ASKED: usize = 8;

/// How many of them answer alike: all or nearly all do if both servers have the same
/// adapters on the same file.
fn alike(load: &Load<'_>, tenon: &Server, server: &Server) -> Outcome<usize> {
    let text = "The capital of France is";
    let mut alike = 0;
    for number in 0..ALIKE_ASKED {
        let named = json!([{"name": alias(number), "weight": 1.0}]);
        let ours = json!({"model": "base", "adapters": named, "prompt": text, "max_tokens": 2, "temperature": 0,
            "ignore_eos": true});
        let theirs = json!({"prompt": text, "n_predict": 2, "temperature": 0, "ignore_eos": true, "cache_prompt": false,
            "lora": [{"id": number, "scale": 1.0}]});
        let ours = load.http.post(&tenon.target, "/v1/completions", &ours)?.1;
        let theirs = load.http.post(&server.target, "/completion", &theirs)?.1;
        let (ours, theirs) = (ours.pointer("/choices/0/text"), theirs.get("content"));
        alike += usize::from(ours.is_some() && ours == theirs);
    }
    Ok(alike)
}

/// Our tokens a second over theirs, and our p95 of the first token over theirs.
struct Ratios {
    tokens: Option<Spread>,
    first_token: Option<Spread>,
}

fn duel(
    load: &mut Load<'_>,
    tenon: &Server,
    (name, server): (&str, &Server),
    mix: Mix,
    report: &mut Report,
) -> Outcome<Ratios> {
    let requests_each = load.amount.requests_each;
    let mut all: [Vec<Served>; 3] = Default::default();
    interleaved(&mut Calm::never_asked(), load.amount.rounds, 3, |side| {
        let server = if side == 1 { server } else { tenon };
        let served = load.run(server, STREAMS_MAX, mix, requests_each)?;
        let speed = served.tokens_per_s;
        if let Some(side) = all.get_mut(side) {
            side.push(served);
        }
        Ok(speed)
    })?;
    // The first of each was the warm-up.
    let [ours, theirs, again] = all.each_ref().map(|side| side.get(1..).unwrap_or_default());
    let of = |side: &[Served], what: fn(&Served) -> f64| side.iter().map(what).collect::<Vec<f64>>();
    let speed: fn(&Served) -> f64 = |served| served.tokens_per_s;
    let first: fn(&Served) -> f64 = |served| served.first_token(0.95);
    let ratio = |what| {
        let control = Spread::of_median_ratio(&of(ours, what), &of(again, what))?;
        // Ours were measured before and after theirs: their mean stands where theirs does, should the machine drift.
        let pairs = of(ours, what).into_iter().zip(of(again, what));
        let both: Vec<f64> = pairs.map(|(before, after)| (before * after).sqrt()).collect();
        let found = Spread::of_median_ratio(&both, &of(theirs, what))?;
        Some((found.widened_by(control.of_mean()), control))
    };
    let (tokens, first_token) = (ratio(speed), ratio(first));
    row("tenon", STREAMS_MAX, mix, ours, report);
    row(name, STREAMS_MAX, mix, theirs, report);
    let peak = server.peak_bytes().map(|bytes| rounded(bytes as f64 / 1e6));
    report.row(json!({"side": name, "peak_resident_mb": peak}));
    report.row(json!({"served": format!("{STREAMS_MAX} streams, {}", mix.name()), "over": name,
        "tokens_per_s_ratio": spread_json(tokens.map(|pair| pair.0)),
        "control_a_a": spread_json(tokens.map(|pair| pair.1)),
        "first_token_p95_ratio": spread_json(first_token.map(|pair| pair.0)),
        "first_token_control_a_a": spread_json(first_token.map(|pair| pair.1))}));
    Ok(Ratios { tokens: tokens.map(|pair| pair.0), first_token: first_token.map(|pair| pair.0) })
}

fn row(side: &str, streams: usize, mix: Mix, served: &[Served], report: &mut Report) {
    let over = |what: &dyn Fn(&Served) -> f64| spread_json(Spread::of(&served.iter().map(what).collect::<Vec<_>>()));
    report.row(json!({
        "served": format!("{streams} streams, {}", mix.name()), "side": side, "tokens_per_s": over(&|one| one.tokens_per_s),
        "first_token_p50_ms": over(&|one| one.first_token(0.5) * 1e3),
        "first_token_p95_ms": over(&|one| one.first_token(0.95) * 1e3),
        "inter_token_p50_ms": over(&|one| one.gap(0.5) * 1e3), "inter_token_p95_ms": over(&|one| one.gap(0.95) * 1e3),
        "prompt_tokens": over(&|one| one.prompt_tokens),
    }));
}

/// The same adapters as files of llama.cpp's.
fn gguf_files(installed: &Installed, config: &model::ModelConfig) -> Outcome<Vec<PathBuf>> {
    let folder = installed.folder.join("adapters");
    fs::create_dir_all(&folder)?;
    let one = |number: usize| -> Outcome<PathBuf> {
        let path = folder.join(format!("random-{number}.gguf"));
        fs::write(&path, RandomAdapter::new(number as u64, config).gguf())?;
        Ok(path)
    };
    (0..ADAPTERS).map(one).collect()
}

fn missing(report: &mut Report, why: &str) {
    report.bar(BASE_NAME, Bound::AtLeast(BASE_BAR), Err(why));
    report.bar(FIRST_TOKEN_NAME, Bound::AtMost(FIRST_TOKEN_BAR), Err(why));
    report.bar(DISTINCT_NAME, Bound::AtLeast(DISTINCT_BAR), Err(why));
}
