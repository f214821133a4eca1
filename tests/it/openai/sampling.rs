//! Penalties, bias and min-p change the text as a hand computation over the model's own log-probabilities says.

use std::collections::HashMap;

use serde_json::{Value, json};
use tests::{Client, completion_ids, shared_server};

/// A greedy completion with its log-probabilities.
fn greedy(client: &Client, change: &Value) -> Value {
    let mut body = json!({"model": "base", "prompt": "The cat and the dog and the cat and the dog and", "max_tokens": 24,
        "temperature": 0, "ignore_eos": true, "logprobs": 20, "return_token_ids": true});
    for (name, value) in change.as_object().unwrap() {
        body[name] = value.clone();
    }
    client.post("/v1/completions", &body).expect(200).json()
}

/// At each step the token is the likeliest once each has paid for its times in the output so far. Returns how often that
/// is not the model's own favourite.
fn check(value: &Value, presence: f64, frequency: f64) -> usize {
    let logprobs = &value["choices"][0]["logprobs"];
    let tokens: Vec<&str> =
        logprobs["tokens"].as_array().unwrap().iter().map(|token| token.as_str().unwrap()).collect();
    let mut times: HashMap<&str, f64> = HashMap::new();
    let mut changed = 0;
    for (step, (token, top)) in tokens.iter().zip(logprobs["top_logprobs"].as_array().unwrap()).enumerate() {
        let top = top.as_object().unwrap();
        let cost = |token: &str| times.get(token).map_or(0.0, |times| presence + frequency * times);
        let paid = |token: &str| top[token].as_f64().unwrap() - cost(token);
        let best = top.keys().max_by(|a, b| paid(a).total_cmp(&paid(b))).unwrap();
        // What is not among the likeliest twenty is less likely still, and costs nothing at best.
        assert!(paid(token) >= paid(best) - 1e-5, "step {step}: {token:?} {} and {best:?} {}", paid(token), paid(best));
        let favourite =
            top.keys().max_by(|a, b| top[*a].as_f64().unwrap().total_cmp(&top[*b].as_f64().unwrap())).unwrap();
        changed += usize::from(favourite != token);
        *times.entry(token).or_default() += 1.0;
    }
    changed
}

#[test]
fn penalties_change_the_text_as_the_arithmetic_says() {
    let Some(server) = shared_server("penalties_change_the_text_as_the_arithmetic_says") else { return };
    let client = server.client();
    assert_eq!(check(&greedy(&client, &json!({})), 0.0, 0.0), 0, "greedy takes the favourite");
    let mut changed = 0;
    for (presence, frequency) in [(2.0, 0.0), (0.0, 0.8), (0.5, 1.25)] {
        let asked = json!({"presence_penalty": presence, "frequency_penalty": frequency});
        changed += check(&greedy(&client, &asked), presence, frequency);
    }
    assert!(changed > 3, "the penalties did nothing: {changed}");
}

#[test]
fn a_repetition_penalty_counts_the_prompt_too() {
    let Some(server) = shared_server("a_repetition_penalty_counts_the_prompt_too") else { return };
    let client = server.client();
    let plain = greedy(&client, &json!({}));
    let prompt: Vec<u64> = serde_json::from_value(plain["choices"][0]["prompt_token_ids"].clone()).unwrap();
    let repeats = |value: &Value| {
        let output: Vec<u64> = completion_ids(value).into_iter().map(u64::from).collect();
        let seen = |(at, id): (usize, &u64)| prompt.contains(id) || output[..at].contains(id);
        output.iter().enumerate().filter(|(at, id)| seen((*at, id))).count()
    };
    let penalised = greedy(&client, &json!({"repetition_penalty": 100}));
    assert!(repeats(&plain) > 4, "without it the model repeats itself: {:?}", completion_ids(&plain));
    assert_eq!(
        repeats(&penalised),
        0,
        "a hundredth of its logit keeps every seen token away: {:?}",
        completion_ids(&penalised)
    );
}

#[test]
fn a_bias_lifts_a_token_or_bans_it() {
    let Some(server) = shared_server("a_bias_lifts_a_token_or_bans_it") else { return };
    let client = server.client();
    let plain = completion_ids(&greedy(&client, &json!({})));
    let banned = completion_ids(&greedy(&client, &json!({"logit_bias": {plain[0].to_string(): -100}})));
    assert!(!banned.contains(&plain[0]) && plain.contains(&plain[0]), "{banned:?}");
    let lifted = greedy(&client, &json!({"logit_bias": {"504": 100}}));
    assert_eq!(completion_ids(&lifted), [504; 24]);
    let logprob = lifted["choices"][0]["logprobs"]["token_logprobs"][0].as_f64().unwrap();
    assert!(logprob < -1.0, "the log-probability stays the model's own: {logprob}");
}

#[test]
fn min_p_leaves_what_is_likely_enough() {
    let Some(server) = shared_server("min_p_leaves_what_is_likely_enough") else { return };
    let client = server.client();
    let plain = completion_ids(&greedy(&client, &json!({})));
    let hot = |min_p: f64| completion_ids(&greedy(&client, &json!({"temperature": 5, "seed": 3, "min_p": min_p})));
    assert_eq!(hot(1.0), plain, "only the likeliest is left");
    assert_ne!(hot(0.0), plain);
    // At temperature 1, no token below the given share of the likeliest is drawn.
    let value = greedy(&client, &json!({"temperature": 1, "seed": 3, "min_p": 0.25}));
    let logprobs = &value["choices"][0]["logprobs"];
    for (drawn, top) in
        logprobs["token_logprobs"].as_array().unwrap().iter().zip(logprobs["top_logprobs"].as_array().unwrap())
    {
        let best = top.as_object().unwrap().values().filter_map(Value::as_f64).fold(f64::MIN, f64::max);
        assert!(drawn.as_f64().unwrap() - best >= 0.25f64.ln() - 1e-5, "{drawn} {best}");
    }
}

#[test]
fn a_draw_with_penalties_does_not_depend_on_its_neighbours() {
    let Some(server) = shared_server("a_draw_with_penalties_does_not_depend_on_its_neighbours") else { return };
    let client = server.client();
    let body =
        json!({"temperature": 1, "seed": 11, "repetition_penalty": 1.2, "frequency_penalty": 0.3, "min_p": 0.02});
    let alone = completion_ids(&greedy(&client, &body));
    let together: Vec<_> = std::thread::scope(|scope| {
        let ask = |seed: u32| {
            let (client, mut body) = (server.client(), body.clone());
            body["seed"] = json!(seed);
            scope.spawn(move || completion_ids(&greedy(&client, &body)))
        };
        let threads: Vec<_> = [11, 12, 13, 11].into_iter().map(ask).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!((&together[0], &together[3]), (&alone, &alone));
    assert_ne!(together[1], alone);
}
