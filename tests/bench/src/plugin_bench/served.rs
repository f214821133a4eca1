//! Tokens a second over HTTP: a function whose plugin passes everything through, and the base by itself, on the same route with
//! the same prompts and as many tokens. The base is measured before and after the function in each round. Not here: what a call
//! costs within the process (`calls`).

use std::time::Instant;

use serde_json::{Value, json};

use super::calls::fixture;
use super::deploy::deploy;
use crate::load::{Http, prompt, read_stream};
use crate::process::Server;
use crate::report::{Report, spread_json};
use crate::statistics::{Bound, Spread};
use crate::{Given, Outcome};

const STREAMS: [usize; 2] = [1, 32];
const OUTPUT_TOKENS: usize = 64;
const OUTPUT_TOKENS_QUICK: usize = 32;
/// Requests of the only stream in a round; of many streams each sends one.
const REQUESTS_ALONE: usize = 3;
const RATIO_BAR: f64 = 0.98;
const ROUTE: &str = "/v1/chat/completions";
/// What both are asked first, to see that they answer alike.
const ALIKE: usize = 4;

/// How much is measured.
pub(super) struct Amount {
    pub(super) threads: usize,
    pub(super) rounds: usize,
    pub(super) is_quick: bool,
}

/// Who answers.
#[derive(Clone, Copy)]
enum Side {
    Base,
    Passing,
}

struct Load<'a> {
    http: &'a Http,
    server: &'a Server,
    output_tokens: usize,
}

/// Measures, and reports.
///
/// # Errors
/// If a server does not come up, a request fails, or both sides do not answer alike.
pub(super) fn run(given: &Given, amount: &Amount, report: &mut Report) -> Outcome {
    println!("\n== tokens a second over HTTP");
    let http = Http::new()?;
    // Each prompt is computed and each token drawn on both sides.
    let settings = [
        ("THREADS", amount.threads.to_string()),
        ("PREFIX_CACHE", "false".to_owned()),
        ("SPECULATION_TOKENS_MAX", "0".to_owned()),
    ];
    let server = Server::tenon(&http, &given.tenon, &given.base, &settings)?;
    let (runtime, client) = http.parts();
    let manifest = json!({"config": {"*": "pass", "ignore-eos": "yes"}});
    runtime.block_on(deploy(client, &server.target, "passing", fixture("actions")?, manifest))?;
    let output_tokens = if amount.is_quick { OUTPUT_TOKENS_QUICK } else { OUTPUT_TOKENS };
    let load = Load { http: &http, server: &server, output_tokens };
    load.check_alike()?;
    for streams in STREAMS {
        let requests_each = if streams == 1 { REQUESTS_ALONE } else { 1 };
        load.tokens_per_s(Side::Base, streams, requests_each, 0)?;
        load.tokens_per_s(Side::Passing, streams, requests_each, 0)?;
        let (mut before, mut passing, mut after) = (Vec::new(), Vec::new(), Vec::new());
        for round in 1..=amount.rounds {
            before.push(load.tokens_per_s(Side::Base, streams, requests_each, round)?);
            passing.push(load.tokens_per_s(Side::Passing, streams, requests_each, round)?);
            after.push(load.tokens_per_s(Side::Base, streams, requests_each, round)?);
        }
        let bare: Vec<f64> = before.iter().zip(&after).map(|(one, two): (&f64, &f64)| (one * two).sqrt()).collect();
        let control = Spread::of_median_ratio(&after, &before);
        report.row(json!({"streams": streams, "requests_each": requests_each, "output_tokens": output_tokens,
            "base_tokens_per_s": spread_json(Spread::of(&bare)), "passing_tokens_per_s": spread_json(Spread::of(&passing)),
            "ratio": spread_json(Spread::of_ratios(&passing, &bare)), "control_a_a": spread_json(control)}));
        let ratio = Spread::of_median_ratio(&passing, &bare).zip(control);
        let ratio = ratio.map(|(ratio, control)| ratio.widened_by(control.of_mean()));
        let name = format!("tokens/s of a function that passes everything over the base's, streams: {streams}");
        report.bar(&name, Bound::AtLeast(RATIO_BAR), ratio.ok_or("no rounds"));
    }
    Ok(())
}

impl Load<'_> {
    fn body(&self, side: Side, number: usize) -> Value {
        let mut body =
            json!({"messages": [{"role": "user", "content": prompt(number)}], "max_tokens": self.output_tokens});
        match side {
            // The plugin says the same in its plan.
            Side::Base => {
                body["model"] = "base".into();
                body["temperature"] = 0.into();
                body["ignore_eos"] = true.into();
            }
            Side::Passing => body["model"] = "passing".into(),
        }
        body
    }

    /// The same text of as many tokens for the same prompts.
    fn check_alike(&self) -> Outcome {
        for number in 0..ALIKE {
            let ask = |side| self.http.post(&self.server.target, ROUTE, &self.body(side, number));
            let (base, passing) = (ask(Side::Base)?, ask(Side::Passing)?);
            let said =
                |answer: &Value| (answer.pointer("/choices/0/message/content").cloned(), answer["usage"].clone());
            if base.0 != 200 || said(&base.1) != said(&passing.1) {
                return Err(format!("the base and the function do not answer alike: {base:?}, {passing:?}").into());
            }
        }
        Ok(())
    }

    fn tokens_per_s(&self, side: Side, streams: usize, requests_each: usize, turn: usize) -> Outcome<f64> {
        let (runtime, client) = self.http.parts();
        let one = |stream: usize| async move {
            for request in 0..requests_each {
                let mut body = self.body(side, turn * 1_000_003 + stream * 1009 + request);
                body["stream"] = true.into();
                body["stream_options"] = json!({"include_usage": true});
                let done = read_stream(client, &self.server.target, ROUTE, &body).await?;
                if done.tokens != self.output_tokens {
                    return Err(format!("{} tokens came of {}", done.tokens, self.output_tokens).into());
                }
            }
            Outcome::Ok(())
        };
        let started = Instant::now();
        runtime.block_on(futures::future::try_join_all((0..streams).map(one)))?;
        Ok((streams * requests_each * self.output_tokens) as f64 / started.elapsed().as_secs_f64())
    }
}
