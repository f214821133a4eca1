//! A whole host whose runner is the CUDA one, on the emulated device (`kernels/emulation`): requests over HTTP, an adapter, a
//! plugin, receipts, metrics, `tenon doctor`, and its end. Not here: what the runner computes (`host/crates/model/tests`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops at the first surprise")]

use std::ffi::OsString;
use std::io::BufRead;
use std::path::PathBuf;

use serde_json::{Value, json};
use tests::{Client, Options, Server, completion_ids, deploy_plugin, repository, skip, tenon};

/// Where the emulation lies, if it was built: `TENON_CUDA_EMULATION`, or beside the build's other results.
fn emulation(test: &str) -> Option<PathBuf> {
    let built = || Some(std::env::current_exe().ok()?.ancestors().nth(3)?.join("cuda-emulation"));
    let folder = std::env::var_os("TENON_CUDA_EMULATION").map(PathBuf::from).or_else(built);
    let folder = folder.filter(|folder| folder.join("libcuda.so.1").is_file());
    if folder.is_none() {
        skip(test, "there is no emulation: run kernels/emulation/build.sh");
    }
    folder
}

fn fixtures() -> PathBuf {
    repository().join("tests/fixtures/bases")
}

/// A server on a fixture with these lines of configuration, and what holds them.
fn start(base: &str, lines: &str, libraries: &[PathBuf]) -> (Server, tempfile::TempDir) {
    start_with(base, lines, libraries, Vec::new())
}

/// Likewise, on a device of which these are set.
fn start_with(
    base: &str,
    lines: &str,
    libraries: &[PathBuf],
    settings: Vec<(&'static str, OsString)>,
) -> (Server, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tenon.toml");
    std::fs::write(&file, lines).unwrap();
    let options = Options {
        arguments: vec!["--config".into(), file.display().to_string()],
        environment: [
            vec![("LD_LIBRARY_PATH", std::env::join_paths(libraries).unwrap()), ("EMU_SEED", "2".into())],
            settings,
        ]
        .concat(),
        ..Options::default()
    };
    (Server::start_on(&fixtures().join(base), options), folder)
}

/// How many of the golden tokens were answered, in order from the first one, and how many there are.
fn agreement(client: &Client, model: &str, greedy: &str) -> (usize, usize) {
    let goldens: Value = serde_json::from_slice(&std::fs::read(fixtures().join("golden.json")).unwrap()).unwrap();
    let (mut equal, mut all) = (0, 0);
    for (name, prompt) in goldens["llama"]["prompts"].as_object().unwrap() {
        let expected = prompt[greedy].as_array().unwrap();
        let body = json!({"model": model, "prompt": prompt["text"], "max_tokens": expected.len(), "temperature": 0,
            "ignore_eos": true, "return_token_ids": true});
        let answer = client.post("/v1/completions", &body).expect(200).json();
        let found = completion_ids(&answer);
        assert_eq!(found.len(), expected.len(), "{model} {name}: {answer}");
        assert_eq!(answer["usage"]["prompt_tokens"], prompt["ids"].as_array().unwrap().len(), "{name}");
        let same = found.iter().zip(expected).take_while(|(found, expected)| json!(found) == **expected).count();
        equal += same;
        all += expected.len();
    }
    (equal, all)
}

mod emulated {
    use super::*;

    #[test]
    fn a_whole_host_serves_from_a_cuda_device_and_drains() {
        let test = "a_whole_host_serves_from_a_cuda_device_and_drains";
        let Some(folder) = emulation(test) else { return };
        let lines = "runner = \"cuda\"\ndevice_memory_bytes_max = 67108864\nbatch_rows_max = 64\nadapter_slots = 4\n";
        let (mut server, _configuration) = start("llama", lines, std::slice::from_ref(&folder));
        let client = server.client();
        server.wait_for_log("a CUDA device computes");

        // bf16 on random weights: a near tie may fall the other way, and the rest of that answer with it.
        client.upload_adapter("moved", &fixtures().join("llama-adapter")).expect(201);
        for (model, greedy) in [("base", "greedy"), ("moved", "adapted")] {
            let (equal, all) = agreement(&client, model, greedy);
            println!("{model}: {equal} of {all} tokens are those of PyTorch");
            assert!(2 * equal >= all, "{model}: {equal} of {all}");
        }

        deploy_plugin(&client, "echo", "echo", &json!({}));
        let answer = client.post("/v1/functions/echo/invoke", &json!({"input": "The tenon is", "max_tokens": 4}));
        let answer = answer.expect(200);
        let receipt = client.get(&format!("/v1/receipts/{}", answer.receipt.as_deref().unwrap())).expect(200).json();
        let subject = &receipt["receipt"]["subject"];
        assert_eq!((&subject["runner"], &subject["precision"]), (&json!("cuda"), &json!("bf16")), "{subject}");

        let metrics = client.get("/metrics").expect(200).text;
        assert!(metrics.contains("tenon_runner_info{runner=\"cuda\",precision=\"bf16\"} 1"), "{metrics}");
        assert_eq!(client.get("/info").expect(200).json()["model_device_type"], "cuda");

        // A stream that is under way when the host is told to end is answered to its end.
        let body = json!({"model": "moved", "prompt": "The", "max_tokens": 24, "temperature": 0, "ignore_eos": true,
            "stream": true});
        let mut stream = Client::lines(client.open("/v1/completions", &body));
        let mut first = String::new();
        stream.read_line(&mut first).unwrap();
        assert!(first.starts_with("data:"), "{first}");
        server.terminate();
        let rest: Vec<String> = stream.lines().map(Result::unwrap).collect();
        assert!(rest.iter().any(|line| line == "data: [DONE]"), "{rest:?}");
        assert!(server.wait().success(), "{}", server.log());
    }

    #[test]
    fn a_host_whose_device_is_lost_is_not_ready_and_says_why() {
        let test = "a_host_whose_device_is_lost_is_not_ready_and_says_why";
        let Some(folder) = emulation(test) else { return };
        let lines = "runner = \"cuda\"\ndevice_memory_bytes_max = 67108864\nbatch_rows_max = 64\nadapter_slots = 4\n";
        // A request of three steps passes, the next one does not.
        let (server, _configuration) = start_with("llama", lines, &[folder], vec![("EMU_LOST", "5".into())]);
        let client = server.client();
        client.upload_adapter("moved", &fixtures().join("llama-adapter")).expect(201);
        assert_eq!(client.get("/ready").expect(200).json()["status"], "ready");
        let ask = |tokens: u32| {
            let body = json!({"model": "moved", "prompt": "The", "max_tokens": tokens, "temperature": 0,
                "ignore_eos": true});
            client.post("/v1/completions", &body)
        };
        ask(3).expect(200);
        let hit = ask(24);
        assert!(hit.status == 503 && hit.text.contains("device_lost"), "{hit:?}");
        let ready = client.get("/ready").expect(503);
        assert!(ready.text.contains("device_lost") && ready.text.contains("CUDA_ERROR_"), "{ready:?}");
        let refused = ask(1).expect(503);
        assert!(refused.text.contains("device_lost"), "{refused:?}");
        // The host itself lives, and counts nothing on that device.
        client.get("/health").expect(200);
        let metrics = client.get("/metrics").expect(200).text;
        for line in ["vllm:num_requests_running 0\n", "tenon_adapter_slots_used 0\n", "vllm:kv_cache_usage_perc 0.0\n"]
        {
            assert!(metrics.contains(line), "{line} is not in\n{metrics}");
        }
    }

    #[test]
    fn cublaslt_is_named_in_receipts_or_refused_at_the_start() {
        let test = "cublaslt_is_named_in_receipts_or_refused_at_the_start";
        let Some(folder) = emulation(test) else { return };
        let lines = "runner = \"cuda\"\nmatmul = \"cublaslt\"\n";
        let (server, configuration) = start("llama", lines, &[folder.clone(), folder.join("cublaslt")]);
        let client = server.client();
        let body = json!({"model": "base", "prompt": "The", "max_tokens": 1});
        let answer = client.post("/v1/completions", &body).expect(200);
        let receipt = client.get(&format!("/v1/receipts/{}", answer.receipt.as_deref().unwrap())).expect(200).json();
        assert_eq!(receipt["receipt"]["subject"]["runner"], "cuda-cublaslt", "{receipt}");

        // Where it is not installed, the host says so and does not start.
        let mut command = tenon();
        command.args(["serve", "--dev", "--listen", "127.0.0.1:0", "--base"]).arg(fixtures().join("llama"));
        command.arg("--data").arg(configuration.path().join("other"));
        command.arg("--config").arg(configuration.path().join("tenon.toml")).env("LD_LIBRARY_PATH", &folder);
        let output = command.output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(!output.status.success() && said.contains("no libcublasLt"), "{said}");
    }

    #[test]
    fn doctor_names_the_device() {
        let Some(folder) = emulation("doctor_names_the_device") else { return };
        let scratch = tempfile::tempdir().unwrap();
        let mut command = tenon();
        command.args(["doctor", "--json", "--listen", "127.0.0.1:0", "--base"]).arg(fixtures().join("llama"));
        command.arg("--data").arg(scratch.path().join("data")).env("LD_LIBRARY_PATH", folder);
        command.env("TENON_ADAPTER_STAGING_BYTES_MAX", (77u64 << 20).to_string());
        let mut found = |runner: &str| {
            let output = command.env("TENON_RUNNER", runner).output().unwrap();
            let found: Value = serde_json::from_slice(&output.stdout).unwrap();
            let checks = found["data"].as_array().unwrap();
            let check = |name| checks.iter().find(|check| check["name"] == name).unwrap().clone();
            [check("GPU"), check("memory")]
        };
        let [gpu, memory] = found("auto");
        assert!(gpu["verdict"] == "ok" && gpu["found"].as_str().unwrap().contains("emulation on the CPU"), "{gpu}");
        let pinned = "of which 77 MiB page-locked for a device";
        assert!(memory["found"].as_str().unwrap().contains(pinned), "{memory}");
        let [_, memory] = found("cpu");
        assert!(!memory["found"].as_str().unwrap().contains("page-locked"), "{memory}");
    }
}
