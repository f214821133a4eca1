//! The self-test on the emulated device: each test runs itself again in a child process whose libcuda is the one that
//! `kernels/emulation/build.sh` makes. Without it the tests are skipped and say so; `cargo xtask test --stage
//! cuda-emulation` builds it and runs them; the stage that runs all other tests leaves out what is in `emulated`.
//!
//! Not here: the cases, which are beside their operations in `kernels/src/cuda/ops`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Set in the child.
const CHILD: &str = "TENON_CUDA_EMULATION_CHILD";

/// Where the emulation lies, if it was built: `TENON_CUDA_EMULATION`, or beside the build's other results.
fn emulation() -> Option<PathBuf> {
    let built = || {
        let executable = std::env::current_exe().ok()?;
        Some(executable.ancestors().nth(3)?.join("cuda-emulation"))
    };
    let folder = std::env::var_os("TENON_CUDA_EMULATION").map(PathBuf::from).or_else(built)?;
    folder.join("libcuda.so.1").is_file().then_some(folder)
}

/// Runs `test` in a child process with the emulation, under each of the settings; in the child, runs `body`.
fn in_a_child(test: &str, settings: &[&[(&str, &str)]], body: impl Fn()) {
    if std::env::var_os(CHILD).is_some() {
        return body();
    }
    let Some(folder) = emulation() else {
        return skip(test, "there is no emulation: run kernels/emulation/build.sh");
    };
    for settings in settings {
        let mut child = Command::new(std::env::current_exe().expect("a test has a path"));
        child
            .args([test, "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, "1")
            .env("LD_LIBRARY_PATH", libraries(&folder, settings));
        child.envs(settings.iter().copied());
        // A sanitizer's runtime, which must be loaded before everything else.
        if let Some(runtime) = std::env::var_os("TENON_CUDA_PRELOAD") {
            child.env("LD_PRELOAD", runtime);
        }
        let output = child.output().expect("a test can be run again");
        let stderr = String::from_utf8_lossy(&output.stderr);
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{test} under {settings:?}: {}\n{stdout}\n{stderr}", output.status);
        assert!(stdout.contains("1 passed"), "{test} did not run in the child:\n{stdout}");
    }
}

/// Where the child finds the driver, and cuBLASLt if its settings say something of that.
fn libraries(folder: &Path, settings: &[(&str, &str)]) -> OsString {
    let mut folders = folder.as_os_str().to_owned();
    if settings.iter().any(|(name, _)| *name == "EMU_CUBLASLT") {
        folders.push(":");
        folders.push(folder.join("cublaslt"));
    }
    folders
}

/// The suite counts what is written to this log.
fn skip(test: &str, why: &str) {
    println!("skipped: {test}: {why}");
    if let Some(log) = std::env::var_os("TENON_SKIP_LOG") {
        use std::io::Write;
        let mut log = std::fs::OpenOptions::new().append(true).create(true).open(log).expect("the log can be opened");
        writeln!(log, "{test}: {why}").expect("the log can be written");
    }
}

mod emulated {
    use kernels::cuda::{CudaError, Device, Event, NoGpu, gpus, selftest};

    use super::in_a_child;

    #[test]
    fn every_kernel_equals_its_reference_under_every_schedule() {
        let seeds = std::env::var("TENON_CUDA_SCHEDULES").unwrap_or_else(|_| "0 1 2 3 4 5 6 7".to_owned());
        let seeds: Vec<&str> = seeds.split_whitespace().collect();
        // With cuBLASLt, whose cases are only there if it is.
        let settings = seeds.iter().map(|seed| [("EMU_SEED", *seed), ("EMU_CUBLASLT", "130000")]);
        let settings: Vec<[(&str, &str); 2]> = settings.collect();
        let settings: Vec<&[(&str, &str)]> = settings.iter().map(|setting| &setting[..]).collect();
        in_a_child("emulated::every_kernel_equals_its_reference_under_every_schedule", &settings, || {
            let device = Device::open(0).expect("the emulation is a device");
            let filter = std::env::var("TENON_SELFTEST").unwrap_or_default();
            let results = selftest::run(&device, 0..1, &filter, &mut std::io::stdout()).expect("stdout can be written");
            assert!(!results.is_empty(), "no case is called {filter}");
            let misses: Vec<_> = results.iter().filter(|result| !result.is_ok()).collect();
            assert!(misses.is_empty(), "{misses:#?}");
        });
    }

    #[test]
    fn a_device_that_cannot_be_used_says_why() {
        in_a_child("emulated::a_device_that_cannot_be_used_says_why", &[&[("EMU_DEVICES", "0")]], || {
            assert_eq!(gpus(), Err(NoGpu::NoDevice));
        });
    }

    #[test]
    fn an_old_driver_says_so() {
        in_a_child("emulated::an_old_driver_says_so", &[&[("EMU_DRIVER", "12040")]], || {
            assert_eq!(gpus(), Err(NoGpu::OldDriver(12_040)));
            assert_eq!(NoGpu::OldDriver(12_040).to_string(), "the driver is for CUDA 12.4, 13.0 is needed");
        });
    }

    #[test]
    fn cublaslt_is_found_or_what_is_missing_is_said() {
        use kernels::cuda::{NoCublasLt, cublaslt_version};
        let name = "emulated::cublaslt_is_found_or_what_is_missing_is_said";
        let settings: [&[(&str, &str)]; 3] = [&[], &[("EMU_CUBLASLT", "120805")], &[("EMU_CUBLASLT", "130001")]];
        in_a_child(name, &settings, || match std::env::var("EMU_CUBLASLT").as_deref() {
            Ok("130001") => assert_eq!(cublaslt_version(), Ok(130_001)),
            Ok(_) => assert_eq!(cublaslt_version(), Err(NoCublasLt::Old(120_805))),
            Err(_) => assert_eq!(cublaslt_version(), Err(NoCublasLt::NoLibrary)),
        });
    }

    #[test]
    fn an_old_device_says_so() {
        in_a_child("emulated::an_old_device_says_so", &[&[("EMU_CAPABILITY", "75")]], || {
            let error = Device::open(0).expect_err("compute capability 7.5 is too old");
            assert!(matches!(&error, CudaError::Absent(NoGpu::OldDevice { capability: (7, 5), .. })), "{error}");
        });
    }

    #[test]
    fn memory_ends_where_the_device_says() {
        in_a_child("emulated::memory_ends_where_the_device_says", &[&[("EMU_MEMORY_BYTES", "1048576")]], || {
            let device = Device::open(0).expect("the emulation is a device");
            let half = device.allocate(524_288).expect("half of it is free");
            assert_eq!(device.memory().expect("known"), (524_288, 1_048_576));
            let error = device.allocate(524_289).expect_err("a byte too many");
            assert_eq!(error, CudaError::Memory { asked: 524_289, free: 524_288 });
            drop(half);
            assert_eq!(device.memory().expect("known"), (1_048_576, 1_048_576));
            let memory = device.allocate(16).expect("free again");
            assert!(memory.part(8, 8).is_ok() && memory.part(8, 9).is_err() && memory.part(usize::MAX, 2).is_err());
        });
    }

    #[test]
    fn copies_events_and_graphs_keep_their_order() {
        let late = [("EMU_SEED", "1")];
        let mixed = [("EMU_SEED", "6")];
        in_a_child(
            "emulated::copies_events_and_graphs_keep_their_order",
            &[&[("EMU_SEED", "0")], &late, &mixed],
            || {
                let device = Device::open(0).expect("the emulation is a device");
                let (compute, copy) = (device.compute(), device.copy());
                let memory = device.allocate(1024).expect("there is memory");
                let (first, second) = (memory.part(0, 16).expect("inside"), memory.part(512, 16).expect("inside"));
                let mut pinned = device.pinned::<u32>(4).expect("there is memory");
                let arrived = Event::new(&device).expect("an event");
                for round in 0..20_u32 {
                    // Waits for the copy of the round before, or its values would be overwritten.
                    pinned.as_mut_slice().expect("no error").fill(round);
                    copy.upload(&mut pinned, 0..4, first).expect("fits");
                    copy.record(&arrived).expect("no error");
                    compute.wait(&arrived).expect("no error");
                    compute.copy(first, second).expect("fits");
                    // The copy stream must not overwrite `first` before it was read.
                    compute.record(&arrived).expect("no error");
                    copy.wait(&arrived).expect("no error");
                    let mut got = [0_u32; 4];
                    compute.download_now(second, &mut got).expect("fits");
                    assert_eq!(got, [round; 4]);
                }
                // A graph reads what memory holds when it is launched.
                let graph = compute.record_graph(|stream| stream.copy(first, second)).expect("a copy can be recorded");
                for round in 100..103_u32 {
                    compute.upload_now(&[round; 4], first).expect("fits");
                    graph.launch(compute).expect("no error");
                    let mut back = device.pinned::<u32>(4).expect("there is memory");
                    compute.download(second, &mut back, 0..4).expect("fits");
                    assert_eq!(back.as_slice().expect("no error"), [round; 4]);
                }
                // What a graph cannot hold is refused, and the stream is whole afterwards.
                let refused = compute.record_graph(|stream| stream.upload(&mut pinned, 0..4, first));
                assert!(matches!(refused, Err(CudaError::Recording(_))), "{refused:?}");
                let refused = compute.record_graph(|_| device.allocate(16).map(drop));
                assert!(refused.is_err());
                compute.upload_now(&[7_u32; 4], first).expect("recording has ended");
                device.synchronize().expect("no error");
            },
        );
    }

    #[test]
    fn a_wait_that_is_missing_shows() {
        // The emulation itself: without the event the compute stream reads what was there before the copy.
        in_a_child("emulated::a_wait_that_is_missing_shows", &[&[("EMU_SEED", "1")]], || {
            let device = Device::open(0).expect("the emulation is a device");
            let (compute, copy) = (device.compute(), device.copy());
            let memory = device.allocate(1024).expect("there is memory");
            let (first, second) = (memory.part(0, 16).expect("inside"), memory.part(512, 16).expect("inside"));
            let mut pinned = device.pinned::<u32>(4).expect("there is memory");
            pinned.as_mut_slice().expect("no error").fill(7);
            copy.upload(&mut pinned, 0..4, first).expect("fits");
            assert!(pinned.is_busy().expect("no error"), "nothing has waited for it");
            let mut got = [0_u32; 4];
            compute.download_now(first, &mut got).expect("fits");
            assert_eq!(got, [u32::MAX; 4]);
            // A buffer that goes is waited for: the copy must not read freed memory.
            drop(pinned);
            compute.copy(first, second).expect("fits");
            compute.download_now(second, &mut got).expect("fits");
            assert_eq!(got, [7; 4]);
        });
    }
}
