//! Agents: sessions that are forked and appended to, what they cost, what they may not do, and the one receipt of it. On the tiny base,
//! whose words mean nothing: what is looked at is which tokens were computed, counted and told.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::{Answer, Client, Options, Server, deploy_plugin, receipt_of, repository, wait_until_idle};

/// Longer than several blocks of KV.
const PROMPT: &str =
    "The tenon is the part that slots into a joint, and the joint is the base that adapters and plugins slot into.";

fn started(limits: &[(&str, u64)]) -> Server {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("tenon.toml");
    let lines: String = limits.iter().map(|(name, value)| format!("{name} = {value}\n")).collect();
    std::fs::write(&file, format!("[limits]\nplugin_call_wall_ms_max = 60000\n{lines}")).expect("written");
    let arguments = vec!["--config".to_owned(), file.display().to_string()];
    let options = Options { arguments, ..Options::default() };
    Server::start_on(&repository().join("tests/fixtures/bases/llama.gguf"), options)
}

fn granted() -> Value {
    json!({"grants": {"generations": true}})
}

fn run(client: &Client, function: &str, script: &str) -> Answer {
    client.post(&format!("/v1/functions/{function}/invoke"), &json!({"input": script}))
}

fn lines(answer: Answer) -> Vec<String> {
    answer.expect(200).json()["output"].as_str().unwrap().lines().map(str::to_owned).collect()
}

/// How many tokens there were before, and how many were generated.
fn counts(line: &str) -> (u64, u64) {
    let (_, numbers) = line.rsplit_once('|').unwrap_or_else(|| panic!("no counts: {line}"));
    let (prompt, rest) = numbers.split_once('+').unwrap();
    (prompt.parse().unwrap(), rest.split(' ').next().unwrap().parse().unwrap())
}

#[test]
fn what_sessions_begin_with_is_computed_once_and_one_receipt_tells_all() {
    let server = started(&[]);
    let client = server.client();
    deploy_plugin(&client, "probe", "agent-probe", &granted());
    let hits = || client.metric("vllm:prefix_cache_hits_total").expect("a metric") as u64;
    let script = |more: &str| format!("open a {PROMPT}\n{more}");
    let answer = run(&client, "probe", &script("gen a 8"));
    let first = lines(answer);
    let (prompt, generated) = counts(&first[0]);
    assert!(prompt > 48 && generated > 0, "{first:?}");
    // A session generates what a plain request does.
    let plain = json!({"model": "base", "prompt": PROMPT, "max_tokens": 8, "temperature": 0});
    let plain = client.post("/v1/completions", &plain).expect(200).json();
    let text = plain["choices"][0]["text"].as_str().unwrap().replace('\n', "\\n");
    assert_eq!(first[0].split('|').next(), Some(text.as_str()));
    // A fork of what was generated, appended to, and its parent going on: only what is new is computed.
    let before = hits();
    let answer = run(&client, "probe", &script("gen a 8\nfork a b\nappend b  and so\ngen b 4\ntokens a\ngen a 4"));
    let receipt = answer.receipt.clone().expect("a receipt");
    let found = lines(answer);
    let (forked, appended) = (counts(&found[2]).0, found[1].parse::<u64>().unwrap());
    assert_eq!((found[3].parse::<u64>().unwrap(), forked), (prompt + generated, appended));
    assert_eq!(found[0], first[0], "the same session, the same text");
    let asked = prompt + forked + counts(&found[4]).0;
    // All blocks of 16 of each, but for the one that was appended into, and the last token, which is always computed.
    let least = asked - 3 * 16 - (appended - prompt - generated);
    assert!(hits() - before >= least, "{} of {asked} found, at least {least}", hits() - before);
    let output = found.join("\n");
    let outcome = receipt_of(&client, &receipt, Some(&output))["receipt"]["outcome"].clone();
    let generations = outcome["generations"].as_array().unwrap();
    let sessions: Vec<_> = generations.iter().map(|one| one["session"].as_u64().unwrap()).collect();
    assert_eq!(sessions, [1, 2, 1], "{outcome}");
    assert_eq!(outcome["tokens"]["prompt"], json!(asked));
    let completion: u64 = [0, 2, 4].map(|line| counts(&found[line]).1).iter().sum();
    let noted: u64 = generations.iter().map(|one| one["tokens"]["completion"].as_u64().unwrap()).sum();
    assert_eq!((outcome["tokens"]["completion"].as_u64(), noted), (Some(completion), completion));
    wait_until_idle(&client);
}

#[test]
fn each_generation_has_its_composition_in_the_receipt() {
    let server = started(&[]);
    let client = server.client();
    client.upload_adapter("moved", &repository().join("tests/fixtures/bases/llama-adapter")).expect(201);
    let manifest = json!({"adapters": ["moved"], "grants": {"generations": true}});
    deploy_plugin(&client, "probe", "agent-probe", &manifest);
    let script =
        format!("open a {PROMPT}\nadapted b moved {PROMPT}\ngen a 4\ngen b 4\nfork b c\ngen c 2\nadapted d other x");
    let answer = run(&client, "probe", &script);
    let receipt = answer.receipt.clone().unwrap();
    let found = lines(answer);
    assert!(found[3].starts_with("error: denied: there is no adapter `other`"), "{found:?}");
    let outcome = receipt_of(&client, &receipt, Some(&found.join("\n")))["receipt"]["outcome"].clone();
    let generations = outcome["generations"].as_array().unwrap();
    let active = |index: usize| generations[index]["composition"][0]["tokens_active"].as_u64();
    let tokens = |line: &str| Some(counts(line).0 + counts(line).1);
    assert_eq!((active(0), active(1), active(2)), (None, tokens(&found[1]), tokens(&found[2])), "{outcome}");
    let all = outcome["composition"].as_array().unwrap();
    assert_eq!(all.len(), 1, "each term once");
    assert_eq!(all[0]["tokens_active"].as_u64(), Some(active(1).unwrap() + active(2).unwrap()));
}

#[test]
fn what_the_manifest_does_not_grant_is_denied() {
    let server = started(&[]);
    let client = server.client();
    deploy_plugin(&client, "none", "agent-probe", &json!({}));
    deploy_plugin(&client, "no-adapters", "agent-probe", &granted());
    client.upload_adapter("moved", &repository().join("tests/fixtures/bases/llama-adapter")).expect(201);
    let found = lines(run(&client, "none", "open a hi\nwrite said\ncall other hello"));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("saiderror: denied: generations: the manifest's grants.generations"), "{found:?}");
    assert!(found[1].contains("denied: the function `other`: the manifest's grants.calls"), "{found:?}");
    let found = lines(run(&client, "no-adapters", "adapted a moved hi"));
    assert!(found[0].contains("denied: there is no adapter `moved` that may be used here"), "{found:?}");
}

#[test]
fn each_budget_is_met_and_named() {
    let server = started(&[]);
    let client = server.client();
    let open = format!("open a {PROMPT}\n");
    let cases = [
        ("sessions_max", 3, format!("{open}repeat 1000 keep a"), "sessions_max of 3 sessions at once; drop one first"),
        ("generations_max", 2, format!("{open}repeat 100 gen a 1"), "generations_max of 2 generations in one request"),
        ("generated_tokens_max", 5, format!("{open}gen a 6"), "generated_tokens_max of 5 generated tokens"),
        ("session_tokens_max", 150, format!("{open}repeat 9 gen a 1"), "session_tokens_max of 150 tokens of prompts"),
        ("output_tokens_max", 4, format!("{open}gen a 5"), "output_tokens_max of 4"),
        ("answer_bytes_max", 300, "repeat 2 big 200".to_owned(), "answer_bytes_max of 300 bytes"),
        (
            "tokenizer_bytes_max",
            300,
            format!("{open}repeat 99 append a 0123456789"),
            "tokenizer_bytes_max of 300 bytes",
        ),
        ("kv_blocks_max", 2, format!("{open}gen a 1"), "kv_blocks_max of 2"),
    ];
    for (limit, max, script, said) in cases {
        deploy_plugin(
            &client,
            "narrow",
            "agent-probe",
            &json!({"grants": {"generations": true}, "limits": {limit: max}}),
        );
        let answer = run(&client, "narrow", &script);
        let found = lines(answer);
        assert!(
            found.iter().any(|line| line.contains("error: over the limit") && line.contains(said)),
            "{limit}: {found:?}"
        );
    }
    // What is written and what is returned count together.
    deploy_plugin(&client, "narrow", "agent-probe", &json!({"limits": {"answer_bytes_max": 300}}));
    run(&client, "narrow", "big 290\nopen a x").expect_error(502, "limit_exceeded");
    // What a session may hold is what the base can take.
    deploy_plugin(&client, "flood", "agent-probe", &granted());
    let flooded = lines(run(&client, "flood", &format!("{open}repeat 100 append a {PROMPT}\ntokens a")));
    assert!(flooded.iter().any(|line| line.contains("prompt_tokens_max of ")), "{flooded:?}");
    assert!(flooded.last().unwrap().parse::<u64>().unwrap() <= 512, "{flooded:?}");
    // A session that was dropped gives its place back, also a hundred times.
    let again = lines(run(&client, "flood", &format!("{open}repeat 100 fork a b\ndrop b\ntokens a")));
    assert_eq!(again.len(), 1, "{again:?}");
    wait_until_idle(&client);
}

#[test]
fn the_time_of_an_agent_is_bounded() {
    let server = started(&[]);
    let client = server.client();
    let with = |limits: Value| json!({"grants": {"generations": true}, "limits": limits});
    let deploy = |limits: Value| deploy_plugin(&client, "timed", "agent-probe", &with(limits));
    deploy(json!({"run_cpu_ms_max": 20}));
    let stopped = run(&client, "timed", "spin").expect_error(502, "plugin_timeout").text;
    assert!(stopped.contains("run_cpu_ms_max"), "{stopped}");
    let endless = format!("open a {PROMPT}\nrepeat 30 draw a 10 1");
    deploy(json!({"run_wall_ms_max": 1}));
    let stopped = run(&client, "timed", &endless).expect_error(502, "plugin_timeout").text;
    assert!(stopped.contains("run_wall_ms_max"), "{stopped}");
    deploy(json!({"deadline_ms_max": 1}));
    // It goes on computing: one that did not might see the deadline itself, and answer with that.
    run(&client, "timed", "spin").expect_error(503, "deadline_exceeded");
    deploy(json!({}));
    run(&client, "timed", "trap").expect_error(502, "plugin_trap");
    let failed = run(&client, "timed", "open a x\nfail of its own accord").expect_error(502, "plugin_error").text;
    assert!(failed.contains("of its own accord"), "{failed}");
    wait_until_idle(&client);
}

#[test]
fn a_session_generates_one_thing_at_a_time_and_can_be_stopped() {
    let server = started(&[]);
    let client = server.client();
    deploy_plugin(&client, "probe", "agent-probe", &granted());
    let script = format!(
        "open a {PROMPT}\nnext a\nstart a 20\ngen a 1\nfork a b\nappend a x\nstart a 1\nnext a\nstop a\nfork a b\nnext a\nopen c hi\ndrop c\ngen c 1"
    );
    let found = lines(run(&client, "probe", &script));
    assert!(found[0].contains("`start` it first"), "{found:?}");
    assert!(found[1..5].iter().all(|line| line.contains("this session generates")), "{found:?}");
    assert!(found[5].starts_with("text ") || found[5].starts_with("done "), "{found:?}");
    assert!(found[6].contains("`start` it first") && found[7].contains("there is no session c"), "{found:?}");
    // Seeded draws are what they were, and carry log-probabilities; another seed gives something else some time.
    let draws = |seed: u32| lines(run(&client, "probe", &format!("open a {PROMPT}\ndraw a 8 {seed}"))).remove(0);
    assert_eq!(draws(7), draws(7));
    assert!((0..20).any(|seed| draws(seed) != draws(7)));
    assert!(draws(7).rsplit(' ').next().unwrap().parse::<i64>().unwrap() < 0, "{}", draws(7));
    // Held to a form; a bad one is the function's fault and no more than an error line.
    let formed = lines(run(&client, "probe", "open a x\njson a {\"enum\": [\"yes\"]}\njson a {\"type\": 7}"));
    assert!(formed[0].starts_with("\"yes\"|") && formed[1].contains("invalid_constraint"), "{formed:?}");
    wait_until_idle(&client);
}

#[test]
fn an_agent_s_answer_is_streamed_and_leaving_ends_it() {
    let server = started(&[]);
    let client = server.client();
    deploy_plugin(&client, "probe", "agent-probe", &granted());
    let script = format!("write first\nopen a {PROMPT}\nstart a 5\nread a\ntokens a");
    let events = client.stream("/v1/functions/probe/invoke", &json!({"input": script, "stream": true}));
    let whole = run(&client, "probe", &script).expect(200).json();
    assert_eq!(events.text(), whole["output"].as_str().unwrap());
    assert!(events.text().starts_with("first") && events.data.len() > 4, "{:?}", events.data);
    let chat = json!({"model": "probe", "messages": [{"role": "user", "content": "write hello"}]});
    let chat = client.post("/v1/chat/completions", &chat).expect(200).json();
    assert_eq!(chat["choices"][0]["message"]["content"], json!("hello"));
    // Whoever leaves in the middle leaves nothing behind: no instance, no sequence, no receipt that is open.
    let draws = (0..30).map(|seed| format!("\nfork a b\ndraw b 120 {seed}"));
    let endless = format!("write begun\nopen a {PROMPT}{}", draws.collect::<String>());
    let body = json!({"input": endless, "stream": true});
    client.hang_up("/v1/functions/probe/invoke", &body, "begun", Duration::ZERO);
    wait_until_idle(&client);
    let begun = Instant::now();
    let cancelled = || {
        let receipts = client.get("/v1/receipts").expect(200).json();
        receipts["data"].as_array().unwrap().iter().filter(|one| one["receipt"]["kind"] == "cancelled").count()
    };
    while cancelled() < 1 {
        assert!(begun.elapsed() < Duration::from_secs(60), "it was never told to be cancelled");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_was_drawn_beyond_a_stop_string_is_counted_and_told() {
    let server = started(&[]);
    let client = server.client();
    deploy_plugin(&client, "probe", "agent-probe", &granted());
    let first = lines(run(&client, "probe", &format!("open a {PROMPT}\ngen a 12"))).remove(0);
    let (text, _) = first.split_once('|').unwrap();
    let stop = text.chars().find(|letter| letter.is_ascii_alphabetic()).expect("a letter");
    let script = format!("open a {PROMPT}\n{}", format!("fork a b\nuntil b {stop}\n").repeat(30));
    let answer = run(&client, "probe", &script);
    let receipt = answer.receipt.clone().unwrap();
    let found = lines(answer);
    assert!(found.len() == 30 && found.iter().all(|line| line.ends_with(" stop")), "{found:?}");
    let told: Vec<_> = found.iter().map(|line| counts(line).1).collect();
    let outcome = receipt_of(&client, &receipt, Some(&found.join("\n")))["receipt"]["outcome"].clone();
    let generations = outcome["generations"].as_array().unwrap();
    let noted: Vec<_> = generations.iter().map(|one| one["tokens"]["completion"].as_u64().unwrap()).collect();
    assert_eq!(told, noted);
    wait_until_idle(&client);
}

#[test]
fn the_receipt_of_an_agent_that_is_cut_off_has_all_that_was_drawn() {
    let server = started(&[]);
    let client = server.client();
    client.upload_adapter("moved", &repository().join("tests/fixtures/bases/llama-adapter")).expect(201);
    let manifest = json!({"adapters": ["moved"], "grants": {"generations": true}});
    deploy_plugin(&client, "probe", "agent-probe", &manifest);
    // None of it is read.
    let starts = |session: char| format!("adapted {session} moved {PROMPT}\nstart {session} 200\n");
    let script: String = ['a', 'b', 'c'].map(starts).concat();
    let script = format!("{script}next a\nwrite begun\nspin");
    let drawn = || client.metric("tenon_completion_tokens_total").expect("a metric") as u64;
    let before = drawn();
    let body = json!({"input": script, "stream": true});
    client.hang_up("/v1/functions/probe/invoke", &body, "begun", Duration::from_millis(20));
    wait_until_idle(&client);
    let begun = Instant::now();
    let cancelled = loop {
        let receipts = client.get("/v1/receipts").expect(200).json();
        let found = receipts["data"].as_array().unwrap().iter().find(|one| one["receipt"]["kind"] == "cancelled");
        if let Some(found) = found {
            break found["receipt"]["outcome"].clone();
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "it was never told to be cancelled");
        std::thread::sleep(Duration::from_millis(20));
    };
    let generations = cancelled["generations"].as_array().unwrap();
    assert_eq!(generations.len(), 3);
    for one in generations {
        let count = |kind: &str| one["tokens"][kind].as_u64().unwrap();
        let active = one["composition"][0]["tokens_active"].as_u64();
        assert_eq!(active, Some(count("prompt") + count("completion")), "{one}");
    }
    while drawn() - before < cancelled["tokens"]["completion"].as_u64().unwrap() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{} of {cancelled}", drawn() - before);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(
        Some(drawn() - before),
        cancelled["tokens"]["completion"].as_u64(),
        "what the engine drew, to the last token"
    );
}

#[test]
fn the_best_of_several_draws_is_sent() {
    let server = started(&[]);
    let client = server.client();
    let manifest = json!({"grants": {"generations": true}, "config": {"draws": "4", "tokens": "8", "system": PROMPT}});
    deploy_plugin(&client, "best", "best-of", &manifest);
    let hits = || client.metric("vllm:prefix_cache_hits_total").expect("a metric") as u64;
    let before = hits();
    let answer = client.post("/v1/functions/best/invoke", &json!({"input": "Which?"})).expect(200);
    let receipt = client.get(&format!("/v1/receipts/{}", answer.receipt.as_deref().unwrap())).expect(200).json();
    let generations = receipt["receipt"]["outcome"]["generations"].as_array().unwrap().clone();
    let prompt = generations[0]["tokens"]["prompt"].as_u64().unwrap();
    assert_eq!(generations.len(), 4);
    assert!(hits() - before >= 3 * (prompt - 16), "{} of 4 times {prompt}", hits() - before);
    let value = answer.json();
    assert_eq!(value["metadata"]["draws"], json!("4"));
    assert!(value["metadata"]["mean_logprob_thousandths"].as_str().unwrap().parse::<i64>().unwrap() < 0, "{value}");
    assert!(value["usage"]["prompt_tokens"].as_u64() >= Some(4 * prompt), "{value}");
}
