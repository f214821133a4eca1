//! Files that are torn, rotten, missing or in the way: an error that says so, or the thing made anew; never an answer
//! from wrong bytes. Not here: what a kill does.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;
use tests::{Client, Options, Server, adapter_folder, deploy_examples};

use super::disk::start_and_end;
use super::files;

/// A server with the examples that was stopped, so that its files can be damaged.
struct Stopped {
    data: PathBuf,
    _scratch: Option<tempfile::TempDir>,
}

impl Stopped {
    fn new(test: &str) -> Option<Self> {
        let mut server = Server::start(test, Options::default())?;
        deploy_examples(&server.client());
        check(&server.client());
        server.terminate();
        assert!(server.wait().success(), "{}", server.log());
        Some(Self { data: server.data().to_path_buf(), _scratch: server.keep_data() })
    }

    fn start(&self, test: &str) -> Server {
        Server::start(test, Options { data: Some(self.data.clone()), ..Options::default() }).expect("a base")
    }

    fn files(&self, folder: &str, end: &str) -> Vec<PathBuf> {
        let all = files::list(&self.data).into_iter().filter(|name| name.starts_with(folder));
        let found: Vec<_> =
            all.map(|name| self.data.join(name)).filter(|path| path.to_string_lossy().ends_with(end)).collect();
        assert!(!found.is_empty(), "{folder}");
        found
    }
}

fn check(client: &Client) {
    let answer = client.post("/v1/functions/skills/invoke", &json!({"input": "December 7th, 1997"})).expect(200);
    assert_eq!(answer.json()["output"], json!("1997-12-07"));
}

/// Waits until the log says so; lines come a moment after the answers that they are about.
pub(super) fn wait_for_log(server: &Server, said: &str) {
    let started = Instant::now();
    while !server.log().contains(said) {
        assert!(started.elapsed() < Duration::from_secs(10), "no `{said}` in the log: {}", server.log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    change(&mut bytes);
    std::fs::write(path, bytes).expect("written");
}

/// The same for a file that nobody may write, which the new one is as well.
fn change_sealed(path: &Path, damage: impl FnOnce(&mut Vec<u8>)) {
    let mode = |mode| std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("set");
    mode(0o600);
    change(path, damage);
    mode(0o400);
}

#[allow(clippy::ptr_arg, reason = "one type for every kind of damage")]
fn flip_in_the_middle(bytes: &mut Vec<u8>) {
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
}

fn cut(bytes: &mut Vec<u8>) {
    bytes.truncate(bytes.len() / 2);
}

#[test]
fn a_rotten_adapter_is_refused_and_uploading_it_again_repairs_it() {
    let test = "a_rotten_adapter_is_refused_and_uploading_it_again_repairs_it";
    let Some(stopped) = Stopped::new(test) else { return };
    let damages: [fn(&mut Vec<u8>); 3] = [flip_in_the_middle, cut, Vec::clear];
    for damage in damages {
        stopped.files("blobs/adapter", "").iter().for_each(|path| change(path, damage));
        // What was packed before would serve still.
        stopped
            .files("packed-adapters", ".packed")
            .iter()
            .for_each(|path| std::fs::remove_file(path).expect("removed"));
        let server = stopped.start(test);
        let client = server.client();
        let body = json!({"input": "December 7th, 1997"});
        client.post("/v1/functions/skills/invoke", &body).expect_error(500, "artifact_corrupt");
        client.post("/v1/completions", &json!({"model": "base", "prompt": "a", "max_tokens": 1})).expect(200);
        for name in ["all-caps", "iso-date", "sentiment-json"] {
            assert!(client.upload_adapter(name, &adapter_folder(name).expect("a fixture")).status < 300);
        }
        check(&client);
        files::check(&stopped.data);
    }
}

#[test]
fn rotten_packed_adapters_are_packed_again() {
    let test = "rotten_packed_adapters_are_packed_again";
    let Some(stopped) = Stopped::new(test) else { return };
    let garbage: fn(&mut Vec<u8>) = |bytes| bytes.fill(b'x');
    for damage in [flip_in_the_middle, cut, Vec::clear, garbage] {
        stopped.files("packed-adapters", ".packed").iter().for_each(|path| change_sealed(path, damage));
        let mut server = stopped.start(test);
        check(&server.client());
        wait_for_log(&server, "it is packed again");
        server.terminate();
        assert!(server.wait().success(), "{}", server.log());
        files::check(&stopped.data);
    }
    stopped.files("packed-adapters", "mark.key").iter().for_each(|path| change(path, cut));
    check(&stopped.start(test).client());
    // As they are: nothing is packed.
    let mut server = stopped.start(test);
    check(&server.client());
    server.terminate();
    assert!(server.wait().success() && !server.log().contains("it is packed again"), "{}", server.log());
}

#[test]
fn rotten_compiled_plugins_are_compiled_again_and_rotten_plugins_are_refused() {
    let test = "rotten_compiled_plugins_are_compiled_again_and_rotten_plugins_are_refused";
    let Some(stopped) = Stopped::new(test) else { return };
    let garbage: fn(&mut Vec<u8>) = |bytes| bytes.fill(b'x');
    for damage in [flip_in_the_middle, cut, Vec::clear, garbage] {
        stopped.files("plugin-cache", ".cwasm").iter().for_each(|path| change(path, damage));
        check(&stopped.start(test).client());
    }
    stopped.files("plugin-cache", "mark.key").iter().for_each(|path| change(path, cut));
    check(&stopped.start(test).client());
    stopped.files("blobs/plugin", "").iter().for_each(|path| change(path, flip_in_the_middle));
    check(&stopped.start(test).client());
    stopped.files("plugin-cache", ".cwasm").iter().for_each(|path| std::fs::remove_file(path).expect("removed"));
    let server = stopped.start(test);
    let answer = server.client().post("/v1/functions/skills/invoke", &json!({"input": "December 7th, 1997"}));
    assert!(answer.status == 500, "{} {}", answer.status, answer.text);
    wait_for_log(&server, "corrupt");
}

#[test]
fn a_torn_database_is_not_opened_and_not_replaced() {
    let test = "a_torn_database_is_not_opened_and_not_replaced";
    let Some(stopped) = Stopped::new(test) else { return };
    let path = stopped.data.join("state.redb");
    let whole = std::fs::read(&path).expect("the database");
    let garbage: fn(&mut Vec<u8>) = |bytes| bytes.fill(b'x');
    let header: fn(&mut Vec<u8>) = |bytes| bytes[..512].fill(0xff);
    for (name, damage) in
        [("half", cut as fn(&mut Vec<u8>)), ("empty", Vec::clear), ("garbage", garbage), ("header", header)]
    {
        change(&path, damage);
        let damaged = std::fs::read(&path).expect("read");
        let said = start_and_end(&stopped.data);
        eprintln!("{name}: {said}");
        assert!(!said.contains("ready, base") && !said.contains("panicked"), "{name}: {said}");
        assert!(said.contains("state.redb") && said.contains("backup"), "{name}: it says what to do: {said}");
        assert!(std::fs::read(&path).expect("read") == damaged, "{name}: what may be repaired is not written over");
        std::fs::write(&path, &whole).expect("restored");
    }
    std::fs::remove_file(&path).expect("removed");
    let said = start_and_end(&stopped.data);
    assert!(said.contains("state.redb") && said.contains("backup"), "{said}");
    assert!(!path.exists());
    std::fs::write(&path, &whole).expect("restored");
    check(&stopped.start(test).client());
}

#[test]
fn what_killed_writers_left_goes_and_what_lives_stays() {
    let test = "what_killed_writers_left_goes_and_what_lives_stays";
    let Some(stopped) = Stopped::new(test) else { return };
    let before = files::list(&stopped.data);
    let blob = stopped.files("blobs/adapter", "").remove(0);
    let beside = |path: &Path, end: &str| PathBuf::from(format!("{}{end}", path.display()));
    let left = [
        beside(&blob, "#1"),
        stopped.data.join("blobs/plugin").join("ab#2"),
        stopped.data.join("plugin-cache/.staged-Ab12Cd"),
        stopped.data.join("packed-adapters/.staged-Ab12Cd"),
        stopped.data.join("dev.key.new"),
        stopped.data.join("receipt.new"),
    ];
    left.iter().for_each(|path| std::fs::write(path, b"half").expect("left"));
    let server = stopped.start(test);
    assert_eq!(files::list(&stopped.data), before);
    files::check(&stopped.data);
    check(&server.client());
}

#[test]
fn a_second_host_on_a_data_folder_is_refused_and_does_no_harm() {
    let test = "a_second_host_on_a_data_folder_is_refused_and_does_no_harm";
    let Some(server) = Server::start(test, Options::default()) else { return };
    deploy_examples(&server.client());
    let said = start_and_end(server.data());
    assert!(said.contains("is in use by another process") && !said.contains("ready, base"), "{said}");
    check(&server.client());
    assert!(server.client().upload_adapter("more", &adapter_folder("iso-date").expect("a fixture")).status < 300);
}

#[test]
fn a_data_folder_that_is_taken_away_takes_nothing_more() {
    let test = "a_data_folder_that_is_taken_away_takes_nothing_more";
    let Some(mut server) = Server::start(test, Options::default()) else { return };
    let _scratch = server.keep_data();
    let client = server.client();
    deploy_examples(&client);
    let elsewhere = server.data().with_extension("elsewhere");
    std::fs::rename(server.data(), &elsewhere).expect("moved");
    let story = json!({"model": "base", "prompt": "a", "max_tokens": 1});
    client
        .upload_adapter("new", &adapter_folder("iso-date").expect("a fixture"))
        .expect_error(500, "data_directory_lost");
    client.post("/v1/tenants", &json!({"name": "new"})).expect_error(500, "data_directory_lost");
    client.post("/v1/completions", &story).expect_error(500, "data_directory_lost");
    client.get("/ready").expect_error(500, "data_directory_lost");
    client.get("/v1/adapters").expect(200);
    assert!(!server.data().exists(), "no second, empty folder is made in its place");
    wait_for_log(&server, "put the folder back");
    std::fs::rename(&elsewhere, server.data()).expect("moved back");
    client.get("/ready").expect(200);
    check(&client);
    assert!(!server.log().contains("panicked"), "{}", server.log());
}
