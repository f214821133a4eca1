//! Callers that leave while a plugin is at work for them. The guests' limits are far away here: what ends them, and gives back
//! what they held, is the caller's leaving alone.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::{Client, Server, deploy_examples, deploy_plugin, server_with_limits, wait_until_idle};

/// Where the guest is when its caller leaves; what the caller has read by then; whether a receipt was begun.
const PLACES: [(&str, &str, bool); 5] = [
    ("route", "", false),
    ("compose", "", false),
    ("constructor", "", true),
    ("chunk", "function.begin", true),
    ("finish", "function.chunk", true),
];
/// How long a guest may take to begin, and a record to become durable, on a machine that has much else to do.
const BEGIN_MAX: Duration = Duration::from_secs(120);
const CALLERS: usize = 6;
const HANG_UPS_EACH: usize = 50;

fn patient(test: &str) -> Option<Server> {
    let hour = 3_600_000;
    let limits = [
        ("plugin_call_cpu_ms_max", hour),
        ("plugin_request_cpu_ms_max", hour),
        ("plugin_call_wall_ms_max", hour),
        ("deadline_ms_max", hour),
    ];
    let server = server_with_limits(test, &limits)?;
    deploy_examples(&server.client());
    deploy_plugin(&server.client(), "cancel", "cancel", &json!({}));
    Some(server)
}

fn leave(client: &Client, place: (&str, &str, bool), wait: Duration) {
    client.hang_up("/v1/functions/cancel/invoke", &asking(place), place.1, wait);
}

fn asking(place: (&str, &str, bool)) -> Value {
    json!({"input": place.0, "max_tokens": 1, "stream": true})
}

fn answers(client: &Client) -> Vec<Value> {
    let ask = |function: &str, body: Value| {
        client.post(&format!("/v1/functions/{function}/invoke"), &body).expect(200).json()["output"].clone()
    };
    vec![
        ask("skills", json!({"input": "December 7th, 1997"})),
        ask("echo", json!({"input": "What is the capital of France?", "max_tokens": 12})),
        // The same guest, when it is not asked to work without end.
        ask("cancel", json!({"input": "What is the ocean?", "max_tokens": 4})),
    ]
}

fn receipts(client: &Client, kind: &str) -> f64 {
    client.metric(&format!("tenon_receipts_total{{kind=\"{kind}\"}}")).unwrap_or(0.0)
}

#[test]
fn a_guest_is_dropped_when_its_caller_leaves() {
    let Some(server) = patient("a_guest_is_dropped_when_its_caller_leaves") else { return };
    let client = server.client();
    let instances = || client.metric("tenon_plugin_instances").expect("the metric");
    for place in PLACES {
        let before = (receipts(&client, "started"), receipts(&client, "cancelled"));
        let begun = f64::from(u8::from(place.2));
        let is_at_work = || instances() > 0.0 && receipts(&client, "started") - before.0 >= begun;
        std::thread::scope(|scope| {
            let (go, signal) = mpsc::channel();
            let client = &client;
            let caller = scope.spawn(move || {
                client.hang_up_after("/v1/functions/cancel/invoke", &asking(place), place.1, || {
                    // It errs if the other end is gone, because the test failed: then it hangs up, too.
                    let _go_or_gone = signal.recv();
                });
            });
            let started = Instant::now();
            while !is_at_work() {
                assert!(!caller.is_finished() && started.elapsed() < BEGIN_MAX, "{}: it does not begin", place.0);
                std::thread::sleep(Duration::from_millis(20));
            }
            // From the instance and the receipt to the place itself it is a few milliseconds, which no metric shows.
            std::thread::sleep(Duration::from_millis(500));
            go.send(()).expect("the caller is there");
        });
        let left = Instant::now();
        wait_until_idle(&client);
        eprintln!("{}: everything was free {:?} after the caller left", place.0, left.elapsed());
        // The record of it becomes durable a moment later.
        let since = || [receipts(&client, "started") - before.0, receipts(&client, "cancelled") - before.1];
        while since() != [begun, begun] {
            assert!(left.elapsed() < BEGIN_MAX, "{}: {:?}, expected {begun} of both", place.0, since());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn hundreds_of_hang_ups_leave_nothing_behind() {
    let Some(server) = patient("hundreds_of_hang_ups_leave_nothing_behind") else { return };
    let client = server.client();
    let before = answers(&client);
    assert_eq!(before[0], json!("1997-12-07"));
    std::thread::scope(|scope| {
        for caller in 0..CALLERS {
            let client = &client;
            scope.spawn(move || {
                for turn in 0..HANG_UPS_EACH {
                    let wait = u64::try_from((turn * 7 + caller * 3) % 25).expect("small");
                    leave(client, PLACES[(turn + caller) % PLACES.len()], Duration::from_millis(wait));
                }
            });
        }
        let during = answers(&client);
        assert_eq!(during, before, "whoever leaves meanwhile");
    });
    wait_until_idle(&client);
    // Answered after them, so written after them.
    assert_eq!(answers(&client), before);
    let kinds = ["started", "finished", "cancelled", "failed"].map(|kind| receipts(&client, kind));
    let [started, finished, cancelled, failed] = kinds;
    eprintln!(
        "{} hang-ups: {started} receipts begun, {finished} finished, {cancelled} cancelled",
        CALLERS * HANG_UPS_EACH
    );
    assert!(started == finished + cancelled && failed == 0.0, "started, finished, cancelled, failed: {kinds:?}");
    assert!(cancelled >= (CALLERS * HANG_UPS_EACH) as f64 * 0.4, "those in chunk and in finish at least: {cancelled}");
    let output = tests::run_tenon(&["receipt", "verify", "--url", server.url(), "--key", &server.key()]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("0 receipts are open"), "{said}");
    assert!(!server.log().contains("panicked"), "{}", server.log());
}
