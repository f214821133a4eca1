//! What is admitted, what is refused and why, and what is kept.

use std::fs;
use std::path::PathBuf;

use bytes::Bytes;
use plugin::{PluginError, PluginLimits};
use types::{Blame, Digest};

use crate::components;
use crate::setup::{IMAGES_MAX, Nowhere, Setup, Stored, compiler, guest, host, limits, no_compiler, request, session};

async fn refused(component: impl Into<Bytes>) -> PluginError {
    Setup::new().host.admit(component.into()).await.expect_err("refused")
}

#[tokio::test]
async fn what_is_no_component_is_invalid() {
    let echo = guest("echo");
    let core_module = b"\0asm\x01\0\0\0".to_vec();
    let mut flipped = echo.to_vec();
    flipped[echo.len() / 3] ^= 0xff;
    let cases = [
        ("nothing", Vec::new()),
        ("text", b"hello".to_vec()),
        ("text that wasmtime's tools would read", b"(component)".to_vec()),
        ("a core module", core_module),
        ("an upload that was cut off", echo[..echo.len() / 2].to_vec()),
        ("one byte less", echo[..echo.len() - 1].to_vec()),
        ("no exports", components::empty()),
    ];
    for (name, component) in cases {
        let error = refused(component).await;
        assert_eq!((error.code(), error.blame()), ("plugin_invalid", Blame::Caller), "{name}: {error}");
        assert_eq!(error.to_string().contains("wasm-tools component new"), name == "a core module", "{error}");
    }
}

#[tokio::test]
async fn an_unknown_import_is_named() {
    let names = [
        "evil:host/shell@1.0.0",
        "wasi:http/incoming-handler@0.2.0",
        "wasi:keyvalue/watcher@0.2.0-draft2",
        "wasi:keyvalue/store@0.1.0",
        "tenon:plugin/files@0.1.0",
    ];
    for name in names {
        let error = refused(components::importing(name)).await;
        assert_eq!(error, PluginError::ImportUnknown(name.into()));
        assert!(error.to_string().contains(name) && error.code() == "plugin_import_unknown");
    }
}

#[tokio::test]
async fn a_large_upload_is_refused_before_anything_reads_it() {
    let setup = Setup::with(PluginLimits { upload_bytes_max: 1000, ..limits() });
    let error = setup.host.admit(guest("echo")).await.expect_err("refused");
    assert_eq!(error.code(), "plugin_too_large");
}

#[tokio::test]
async fn admitting_again_compiles_nothing() {
    let setup = Setup::new();
    let echo = guest("echo");
    let digest = setup.host.admit(echo.clone()).await.expect("admitted");
    assert_eq!(digest, Digest::of(&echo));
    let artefacts = || fs::read_dir(setup.cache.path()).expect("a folder").count();
    let before = artefacts();
    assert_eq!(setup.host.admit(echo.clone()).await, Ok(digest));
    assert_eq!(artefacts(), before);
    let restarted = host(setup.cache.path(), limits(), no_compiler());
    assert_eq!(restarted.admit(echo).await, Ok(digest));
}

#[tokio::test]
async fn the_cache_survives_a_restart() {
    let setup = Setup::new();
    let digest = setup.host.admit(guest("echo")).await.expect("admitted");
    drop(setup.host);
    let restarted = host(setup.cache.path(), limits(), no_compiler());
    let mut instance = restarted.start(digest, &Nowhere, session()).await.expect("from disk");
    assert!(instance.compose(&request("hello")).await.is_ok());
}

/// Each distinct component that has run keeps an image of its memory in a file of its own, however small it is.
#[test]
fn thousands_of_small_plugins_do_not_use_up_the_files_that_may_be_open() {
    const ALONE: &str = "TENON_TEST_ALONE_FILES";
    if std::env::var_os(ALONE).is_none() {
        let mut child = std::process::Command::new(std::env::current_exe().expect("this program"));
        let name = "admission::thousands_of_small_plugins_do_not_use_up_the_files_that_may_be_open";
        let output = child.args(["--exact", name, "--nocapture"]).env(ALONE, "1").output().expect("it starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let setup = Setup::new();
        let echo = guest("echo");
        for number in 0..2 * IMAGES_MAX {
            // A section that nobody reads makes another component of it.
            let name = format!("{number:04}");
            let component = [&echo, &[0, 5, 4][..], name.as_bytes()].concat();
            let digest = setup.host.admit(component.into()).await.expect("admitted");
            assert!(setup.host.start(digest, &Nowhere, session()).await.is_ok());
        }
        let images = || {
            let files = fs::read_dir("/proc/self/fd").expect("Linux").flatten();
            let targets = files.filter_map(|file| fs::read_link(file.path()).ok());
            let is_image = |target: &std::path::PathBuf| {
                target.starts_with(setup.cache.path()) || target.to_string_lossy().contains("wasm-memory-image")
            };
            targets.filter(is_image).count() as u64
        };
        assert!(images() > 0, "if there are none any more, the bound is not needed");
        let asked = std::time::Instant::now();
        // The cache clears itself up beside its work.
        while images() > IMAGES_MAX + 4 {
            assert!(asked.elapsed().as_secs() < 60, "{} images are open", images());
            let digest = setup.host.admit(echo.clone()).await.expect("admitted");
            assert!(setup.host.start(digest, &Nowhere, session()).await.is_ok());
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
}

#[tokio::test]
async fn a_tampered_artefact_is_compiled_again() {
    let setup = Setup::new();
    let echo = guest("echo");
    let digest = setup.host.admit(echo.clone()).await.expect("admitted");
    drop(setup.host);
    let artefact = artefact(setup.cache.path());
    let good = fs::read(&artefact).expect("an artefact");
    for change in [good.len() - 1, good.len() / 2, 41, 9, 0] {
        let mut bytes = good.clone();
        bytes[change] ^= 1;
        // Another file of that name: what is mapped of the old one may still be in use, and is never written.
        let other = artefact.with_extension("other");
        fs::write(&other, &bytes).expect("written");
        fs::rename(&other, &artefact).expect("replaced");
        let without = host(setup.cache.path(), limits(), no_compiler());
        let error = without.start(digest, &Nowhere, session()).await.expect_err("not ours");
        assert_eq!(error, PluginError::NotFound(digest));
        let with = host(setup.cache.path(), limits(), compiler());
        assert!(with.start(digest, &Stored(echo.clone()), session()).await.is_ok());
        assert_eq!(fs::read(&artefact).expect("an artefact"), good, "it is written anew");
    }
}

#[tokio::test]
async fn a_damaged_source_is_noticed() {
    let setup = Setup::new();
    let other = Stored(guest("blend"));
    let error = setup.host.start(Digest::of(&guest("echo")), &other, session()).await.expect_err("not the same");
    assert_eq!((error.code(), error.blame()), ("internal", Blame::Host));
    let error = setup.host.start(Digest::of(b"x"), &Nowhere, session()).await.expect_err("not there");
    assert_eq!(error.code(), "plugin_not_found");
}

#[tokio::test]
async fn a_compiler_over_its_limits_fails_the_upload_not_the_host() {
    let cases = [
        PluginLimits { compile_memory_bytes_max: 24 << 20, ..limits() },
        PluginLimits { compile_cpu_seconds_max: 0, ..limits() },
        PluginLimits { compile_wall_ms_max: 1, ..limits() },
        PluginLimits { compiled_bytes_max: 10_000, ..limits() },
    ];
    for limits in cases {
        let setup = Setup::with(limits.clone());
        let error = setup.host.admit(guest("echo")).await.expect_err("over a limit");
        assert_eq!((error.code(), error.blame()), ("plugin_compile_failed", Blame::Caller), "{error} {limits:?}");
    }
}

#[tokio::test]
async fn a_missing_compiler_is_the_hosts_fault() {
    let cache = tempfile::tempdir().expect("a folder");
    let error = host(cache.path(), limits(), no_compiler()).admit(guest("echo")).await.expect_err("no compiler");
    assert_eq!((error.code(), error.blame()), ("internal", Blame::Host));
}

#[test]
fn the_fixtures_are_what_their_list_says() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../tests/fixtures/guests");
    let list = fs::read_to_string(folder.join("DIGESTS")).expect("a list");
    for line in list.lines() {
        let (digest, name) = line.split_once("  ").expect("a digest and a name");
        let bytes = fs::read(folder.join(name)).expect("a fixture");
        assert_eq!(Digest::of(&bytes).to_string(), digest, "{name}");
    }
    let fixtures = fs::read_dir(&folder).expect("a folder").flatten();
    let components = fixtures.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "wasm"));
    assert_eq!(components.count(), list.lines().count());
}

fn artefact(folder: &std::path::Path) -> PathBuf {
    let mut entries = fs::read_dir(folder).expect("a folder").flatten().map(|entry| entry.path());
    entries.find(|path| path.extension().is_some_and(|extension| extension == "cwasm")).expect("an artefact")
}
