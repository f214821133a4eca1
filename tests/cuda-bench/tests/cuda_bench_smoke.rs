//! The whole of `cuda-bench` on the emulated device, at tiny sizes: every part runs and is in the report. Not here: speed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops at the first surprise")]

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

/// The program, and its report if it wrote one.
fn bench(arguments: &[&str], library: Option<PathBuf>) -> (Output, Value) {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("cuda.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_cuda-bench"));
    command.arg("--tiny").arg("--json").arg(&json).args(arguments).env("EMU_SEED", "2");
    command.env_remove("LD_LIBRARY_PATH");
    if let Some(library) = library {
        command.env("LD_LIBRARY_PATH", library);
    }
    let output = command.output().unwrap();
    let report = std::fs::read(&json).ok().map_or(Value::Null, |text| serde_json::from_slice(&text).unwrap());
    (output, report)
}

#[test]
fn without_a_gpu_it_says_so_and_writes_nothing() {
    if PathBuf::from("/proc/driver/nvidia/version").exists() {
        return;
    }
    let (output, report) = bench(&[], None);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains("there is no GPU to measure"), "{stderr}");
    assert!(report.is_null());
}

mod emulated {
    use super::*;

    /// Where the emulation lies, if it was built: `TENON_CUDA_EMULATION`, or beside the build's other results.
    fn emulation() -> Option<PathBuf> {
        let built = || {
            let executable = std::env::current_exe().ok()?;
            Some(executable.ancestors().nth(3)?.join("cuda-emulation"))
        };
        let folder = std::env::var_os("TENON_CUDA_EMULATION").map(PathBuf::from).or_else(built)?;
        folder.join("libcuda.so.1").is_file().then_some(folder)
    }

    /// The suite counts what is written to this log.
    fn skip(test: &str) {
        let why = "there is no emulation: run kernels/emulation/build.sh";
        println!("skipped: {test}: {why}");
        if let Some(log) = std::env::var_os("TENON_SKIP_LOG") {
            use std::io::Write;
            let mut log =
                std::fs::OpenOptions::new().append(true).create(true).open(log).expect("the log can be opened");
            writeln!(log, "{test}: {why}").expect("the log can be written");
        }
    }

    #[test]
    fn every_part_runs_and_is_in_the_report() {
        let Some(folder) = emulation() else { return skip("every_part_runs_and_is_in_the_report") };
        let (output, report) = bench(&["--red-line-seconds", "3"], Some(folder));
        let stdout = String::from_utf8_lossy(&output.stdout);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stdout}\n{stderr}");
        assert_eq!(report["failures"], serde_json::json!({}), "{stdout}");
        let parts = [
            "limits",
            "selftest",
            "goldens",
            "lora-alone",
            "decode",
            "prefill",
            "adapter-tax",
            "cold-load",
            "resident",
            "red-line",
        ];
        for part in parts {
            assert!(report["rows"].as_array().unwrap().iter().any(|row| row["part"] == part), "{part}:\n{stdout}");
        }
        // What does not depend on speed is decided here, too.
        let bar = |name: &str| report["bars"][name]["ok"].clone();
        for name in [
            "selftest: cases beyond their tolerance",
            "goldens: rms of a prompt's logits from PyTorch's",
            "red line: wrong answers in churn",
        ] {
            assert_eq!(bar(name), true, "{name}:\n{stdout}");
        }
        // What does is absent: an emulated device has no speed.
        assert_eq!(report["bars"].as_object().unwrap().len(), 3, "{stdout}");
        assert!(report["device"]["name"].is_string() && report["limits"]["copy_bytes_per_s"].as_f64().unwrap() > 0.0);
    }

    #[test]
    fn a_part_that_fails_is_reported_and_the_others_go_on() {
        let Some(folder) = emulation() else { return skip("a_part_that_fails_is_reported_and_the_others_go_on") };
        // Without the first part there is no bandwidth, so that nothing has a floor.
        let (output, report) = bench(&["--only", "decode,goldens"], Some(folder));
        assert!(output.status.success());
        assert!(report["failures"]["decode"].as_str().unwrap().contains("no bandwidth was measured"));
        assert!(report["failures"]["goldens"].is_null() && !report["bars"].as_object().unwrap().is_empty());
    }
}
