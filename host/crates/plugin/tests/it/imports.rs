//! What is lent through the standard interfaces and our own: what is granted works, what is not is denied and named.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use plugin::{LogLevel, PluginError, PluginLimits, Session};
use types::Decision;

use crate::lenders::{Buckets, Web, lent, lines};
use crate::setup::{Kept, Setup, limits, request, session};

/// What a script's commands answered, a line for each.
async fn script(setup: &Setup, session: Session, script: &str) -> Vec<String> {
    let mut instance = setup.start_with("imports", session).await;
    match instance.route(&request(script)).await {
        Ok(Decision::Answer(text)) => text.lines().map(str::to_owned).collect(),
        other => panic!("{script}: {other:?}"),
    }
}

#[tokio::test]
async fn what_is_not_granted_links_and_is_denied_and_the_grant_is_named() {
    let setup = Setup::new();
    let log = Arc::new(Kept::default());
    let nothing = Session { log: Arc::clone(&log) as _, ..session() };
    let said =
        script(&setup, nothing, "kv-open b|kv-get b k|secret key|get http://echo/|post http://echo/ x|count x").await;
    assert!(said.iter().all(|line| line.starts_with("error: ")), "{said:?}");
    assert!(said[0].contains("grants.kv") && said[2].contains("grants.secrets"), "{said:?}");
    assert!(said[3].contains("HttpRequestDenied") && said[4].contains("HttpRequestDenied"), "{said:?}");
    let logged = lines(&log).join("\n");
    for grant in ["bucket `b` is denied: the manifest's grants.kv", "`echo` is not in the manifest's grants.http"] {
        assert!(logged.contains(grant), "{logged}");
    }
}

#[tokio::test]
async fn buckets_keep_what_is_put_into_them() {
    let setup = Setup::new();
    let buckets = Arc::new(Buckets::default());
    let with = || Session { keyvalue: Arc::clone(&buckets) as _, ..lent().0 };
    let said =
        script(&setup, with(), "kv-get b k|kv-set b k one|kv-get b k|kv-add b n 5|kv-add b n -7|kv-set b z 1").await;
    assert_eq!(said, ["nothing", "set", "one", "5", "-2", "set"]);
    let said = script(&setup, with(), "kv-get b k|kv-keys b|kv-delete b k|kv-get b k|kv-keys b").await;
    assert_eq!(said, ["one", "k,n,z", "deleted", "nothing", "n,z"], "another instance sees them");
    let said = script(&setup, with(), "kv-swap b new v|kv-lost-swap b new|kv-get b new|kv-lost-swap b fresh").await;
    assert_eq!(said, ["true", "lost to theirs", "theirs", "lost to theirs"]);
}

#[tokio::test]
async fn a_bucket_s_refusals_are_the_interface_s_own() {
    let setup = Setup::new();
    let (session, log) = lent();
    let said = script(
        &setup,
        session,
        "kv-get read k|kv-set read k v|kv-swap read k v|kv-set b word x|kv-add b word 1|kv-set b big 9223372036854775807|kv-add b big 1|kv-get b broken|kv-open B",
    )
    .await;
    assert_eq!(said[0], "nothing");
    assert!(said[1].contains("denied") && said[2].contains("denied"), "{said:?}");
    assert!(said[4].contains("no number") && said[6].contains("64 bits") && said[7].contains("the disk"), "{said:?}");
    assert!(said[8].contains("denied"), "names are told apart by case: {said:?}");
    assert!(lines(&log).iter().any(|line| line.contains("`read` is denied") && line.contains("lets it be read")));
}

#[tokio::test]
async fn secrets_are_read_by_name_and_are_not_configuration() {
    let setup = Setup::new();
    let (session, log) = lent();
    let session = Session { config: vec![("tone".into(), "warm".into())], ..session };
    let said = script(&setup, session, "secret key|secret other|config tone|config key|config secrets/key").await;
    assert_eq!(said[0], "s3cret");
    assert!(said[1].contains("`other`") && said[1].contains("grants.secrets"), "{said:?}");
    assert_eq!(said[2..], [r#"Some("warm")"#, "None", "None"]);
    assert!(!lines(&log).join("").contains("s3cret"));
}

#[tokio::test]
async fn a_request_goes_out_whole_and_comes_back_whole() {
    let setup = Setup::new();
    let (session, log) = lent();
    let said = script(
        &setup,
        session,
        "get http://echo/a?q=1|post https://echo/ hello|post http://echo/ x100000|get-with-secret http://echo/ key|get http://moved/|method http://echo/ PATCH",
    )
    .await;
    assert!(said[0].starts_with("200 GET http://echo/a?q=1 ["), "{}", said[0]);
    assert!(said[1].starts_with("200 POST https://echo/") && said[1].ends_with(" hello"), "{}", said[1]);
    assert!(said[2].ends_with(&"x".repeat(100_000)), "{} bytes", said[2].len());
    assert!(said[3].contains("authorization=") && said[3].contains("s3cret"), "{}", said[3]);
    assert_eq!(said[4], "302 ", "a redirect is the plugin's to follow");
    assert!(said[5].starts_with("200 PATCH"), "{}", said[5]);
    assert!(lines(&log).is_empty(), "nothing was refused: {:?}", lines(&log));
}

#[tokio::test]
async fn hostile_requests_are_refused() {
    let setup = Setup::new();
    let (session, _) = lent();
    let commands = [
        ("get http://private/", "DestinationIpProhibited"),
        ("get http://other/", "HttpRequestDenied"),
        ("get ftp://echo/", "HttpProtocolError"),
        ("get http://", ""),
        ("header http://echo/ Host evil", "Forbidden"),
        ("header http://echo/ Transfer-Encoding chunked", "Forbidden"),
        ("header http://echo/ Content-Length 5", ""),
        ("header http://echo/ a\u{0}b c", "InvalidSyntax"),
        ("header http://echo/ a b\r\nc:d", "InvalidSyntax"),
        ("method http://echo/ G\u{e9}T", ""),
    ];
    let all: Vec<&str> = commands.iter().map(|(command, _)| *command).collect();
    let said = script(&setup, session, &all.join("|")).await;
    for ((command, expected), line) in commands.iter().zip(&said) {
        if *command == "header http://echo/ Content-Length 5" {
            continue;
        }
        assert!(line.starts_with("error: ") && line.contains(expected), "{command:?}: {line}");
    }
    // Headers that are too many for the memory that they may have end the call.
    let mut instance = setup.start_with("imports", lent().0).await;
    let error = instance.route(&request("header http://echo/ big x100000")).await.expect_err("too many");
    assert_eq!(error, PluginError::Limit { call: "route", limit: "http_headers_bytes_max" });
}

#[tokio::test]
async fn a_silent_host_costs_one_call_and_is_let_go() {
    let setup = Setup::with(PluginLimits { call_wall_ms_max: 2000, ..limits() });
    let web = Arc::new(Web::default());
    let session = Session { outbound: Arc::clone(&web) as _, ..lent().0 };
    let mut instance = setup.start_with("imports", session).await;
    let started = Instant::now();
    let outcome = instance.route(&request("get http://silent/")).await;
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    match outcome {
        Err(PluginError::Timeout { limit: "call_wall_ms_max", .. }) => {}
        Ok(Decision::Answer(text)) => assert!(text.contains("HttpResponseTimeout"), "{text}"),
        other => panic!("{other:?}"),
    }
    drop(instance);
    let asked = Instant::now();
    while web.pending.load(Ordering::SeqCst) > 0 {
        assert!(asked.elapsed() < Duration::from_secs(20), "the request goes on after its instance");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn text_becomes_tokens_and_back_within_bounds() {
    let setup = Setup::with(PluginLimits { call_cpu_ms_max: 30_000, ..limits() });
    let said =
        script(&setup, lent().0, "encode ab|count hello|decode 2 3|decode 4000000000|count x2000000|count a").await;
    assert_eq!(said[..3], ["[97, 98]", "5", "xxxxx"]);
    assert!(said[3].contains("tokenizer_bytes_max") && said[4].contains("tokenizer_bytes_max"), "{said:?}");
    assert_eq!(said[5], "1", "what was refused was not counted");
}

#[tokio::test]
async fn standard_lines_go_into_the_function_s_log() {
    let setup = Setup::new();
    let (session, log) = lent();
    assert_eq!(script(&setup, session, "log here it is").await, ["logged"]);
    let logged = log.0.lock().expect("not poisoned");
    let levels: Vec<LogLevel> = logged.iter().map(|(level, _)| *level).collect();
    use LogLevel::{Debug, Error, Info, Warn};
    assert_eq!(levels, [Debug, Debug, Info, Warn, Error, Error]);
    assert!(logged.iter().all(|(_, line)| line == "here: it is"), "{logged:?}");
}
