//! A disk that becomes full under a running host: a clear error for whatever is new, an end for whatever runs, nothing
//! lost, and all as before once there is room. The disk is a small tmpfs in a mount namespace of its own.

use std::io::{BufRead as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::blocking::Response;
use serde_json::{Value, json};
use tests::{Answer, Client, Options, Server, adapter_folder, base, deploy_examples, guest, tenon};

use super::NO_MORE_WAITING;
use super::chain::verify_offline;
use super::damage::wait_for_log;
use super::files;

/// Says to the inner run that it is one, and where its disk is.
const MOUNTED: &str = "SMALL_DISK_OF_TEST";
const DISK_BYTES: u64 = 64 << 20;
/// What the host keeps for the ends of what was begun.
const RESERVE_BYTES: u64 = 16 << 20;

/// Runs the test once more, as a process with a disk of its own, in which it does the work.
fn on_a_small_disk(test: &str, inner: fn(&Disk)) {
    if let Some(root) = std::env::var_os(MOUNTED) {
        return inner(&Disk { root: root.into() });
    }
    if base().is_none() {
        return tests::skip(test, "the base is not there (cargo xtask base)");
    }
    let namespaces = [["-r", "-m"].as_slice(), ["-m"].as_slice()];
    let folder = tempfile::tempdir().expect("a folder");
    let mount = format!("mount -t tmpfs -o size={DISK_BYTES} tenon-test \"$1\"");
    let may = |flags: &&&[&str]| {
        let mut command = Command::new("unshare");
        command.args(**flags).args(["sh", "-c", &mount, "sh"]).arg(folder.path());
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    let Some(flags) = namespaces.iter().find(may) else {
        return tests::skip(test, "no mount namespace with a tmpfs may be made here");
    };
    let mut command = Command::new("unshare");
    command.args(*flags).args(["sh", "-c", &format!("{mount} && shift && exec \"$@\""), "sh"]).arg(folder.path());
    command.arg(std::env::current_exe().expect("a test has a path"));
    command.args([&format!("crash::disk::{test}"), "--exact", "--nocapture"]).env(MOUNTED, folder.path());
    let output = command.output().expect("unshare runs");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    eprintln!("{said}");
    assert!(output.status.success() && said.contains("1 passed"), "the inner test failed");
}

/// The disk of an inner test.
struct Disk {
    root: PathBuf,
}

impl Disk {
    fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    fn free(&self) -> u64 {
        let found = rustix::fs::statvfs(&self.root).expect("statvfs");
        found.f_bavail * found.f_frsize
    }

    /// Somebody else's file takes all but so many bytes.
    fn leave(&self, bytes: u64) {
        let path = self.root.join("ballast");
        drop(std::fs::remove_file(&path));
        let mut file = std::fs::File::create(path).expect("a file");
        let chunk = vec![1; 1 << 16];
        while self.free() > bytes {
            let size = (self.free() - bytes).min(chunk.len() as u64);
            if file.write_all(&chunk[..usize::try_from(size).expect("small")]).is_err() {
                return;
            }
        }
    }

    fn make_room(&self) {
        std::fs::remove_file(self.root.join("ballast")).expect("the ballast goes");
    }

    fn start(&self, test: &str) -> Server {
        Server::start(test, Options { data: Some(self.data()), ..Options::default() }).expect("a base")
    }
}

fn date(client: &Client) -> Answer {
    client.post("/v1/functions/skills/invoke", &json!({"input": "December 7th, 1997"}))
}

fn check_date(client: &Client) {
    assert_eq!(date(client).expect(200).json()["output"], json!("1997-12-07"));
}

/// What the host says is there.
fn listing(client: &Client) -> Vec<Value> {
    let paths = ["/v1/adapters", "/v1/functions", "/v1/functions/skills/versions", "/v1/tenants", "/v1/models"];
    paths.iter().map(|path| without_residency(client.get(path).expect(200).json())).collect()
}

fn without_residency(mut value: Value) -> Value {
    for one in value["data"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        one.remove("residency");
        one.remove("created");
    }
    value
}

fn expect_full(answer: Answer) {
    let answer = answer.expect_error(507, "storage_full");
    assert!(answer.text.contains("free space under the data folder"), "it says what to do: {}", answer.text);
    assert!(answer.text.contains("server_error"), "{}", answer.text);
}

/// All that writes, with names that are new.
fn write_everything(client: &Client) -> [Answer; 9] {
    let echo = client.get("/v1/functions/echo/versions").expect(200).json()["data"][0]["plugin"].clone();
    let mut other = guest("echo");
    other.extend([0, 3, 1, b'x', b'y']);
    let story = json!({"model": "base", "prompt": "Once", "max_tokens": 2});
    let mut streamed = story.clone();
    streamed["stream"] = json!(true);
    [
        client.upload_adapter("new", &adapter_folder("iso-date").expect("a fixture")),
        client.post_bytes("/v1/plugins", other),
        client.put("/v1/functions/new", &json!({"plugin": echo})),
        client.put("/v1/functions/skills", &json!({"plugin": echo})),
        client.post("/v1/tenants", &json!({"name": "new"})),
        client.post("/v1/keys", &json!({"tenant": "dev", "rights": ["invoke"], "label": "new"})),
        client.post("/v1/completions", &story),
        client.post("/v1/completions", &streamed),
        client.post("/v1/functions/echo/invoke", &json!({"input": "hello", "max_tokens": 2})),
    ]
}

/// A stream of which the first events have come.
fn begin(client: &Client, tokens: u32) -> std::io::BufReader<Response> {
    let body = json!({"model": "base", "prompt": "Once upon a time", "max_tokens": tokens, "temperature": 0,
        "ignore_eos": true, "stream": true});
    let mut lines = Client::lines(client.open("/v1/completions", &body));
    lines.read_line(&mut String::new()).expect("a first event");
    lines
}

fn rest(stream: std::io::BufReader<Response>) -> Vec<String> {
    stream.lines().map_while(Result::ok).filter(|line| !line.is_empty()).collect()
}

#[test]
fn a_disk_that_becomes_full_stops_what_is_new_and_loses_nothing() {
    let test = "a_disk_that_becomes_full_stops_what_is_new_and_loses_nothing";
    on_a_small_disk(test, full_disk);
}

fn full_disk(disk: &Disk) {
    let server = disk.start("full_disk");
    let client = server.client();
    deploy_examples(&client);
    check_date(&client);
    let key =
        client.post("/v1/keys", &json!({"tenant": "dev", "rights": ["invoke"], "label": "old"})).expect(201).json();
    let before = listing(&client);
    let files_before = files::settled(&disk.data());

    // Room for what is small, not for what is large.
    disk.leave(RESERVE_BYTES + (3 << 20));
    expect_full(client.upload_adapter("large", &adapter_folder("iso-date").expect("a fixture")));
    check_date(&client);

    // Only the reserve is left: what runs ends, what is new is refused, what is there is read.
    let running = begin(&client, 60);
    disk.leave(RESERVE_BYTES - (1 << 20));
    write_everything(&client).into_iter().for_each(expect_full);
    assert_eq!(rest(running).last().map(String::as_str), Some("data: [DONE]"));
    assert_eq!(listing(&client), before);
    files::check(&disk.data());
    assert_eq!(files::list(&disk.data()), files_before, "nothing half-written is left");
    client.get("/health").expect(200);
    expect_full(client.get("/ready"));
    verify_offline(&client, &disk.data());

    // Not even that is left.
    disk.make_room();
    check_date(&client);
    let running: Vec<_> = (0..8).map(|_| begin(&client, 40)).collect();
    disk.leave(0);
    write_everything(&client).into_iter().for_each(expect_full);
    for stream in running {
        let lines = rest(stream);
        let last = lines.len() - 1;
        assert_eq!(lines[last], "data: [DONE]", "also an error ends a stream");
        let is_whole = lines[last - 1].contains("finish_reason") && !lines[last - 1].contains("\"error\"");
        assert!(is_whole || lines[last - 1].contains("storage_full"), "{}", lines[last - 1]);
    }
    assert_eq!(listing(&client), before, "a disk without room can be read");
    // The database failed, or this tested less.
    wait_for_log(&server, "opened anew");
    files::check(&disk.data());

    // A key is revoked without room, too.
    disk.leave(RESERVE_BYTES - (1 << 20));
    client.delete(&format!("/v1/keys/{}", key["id"].as_str().expect("an id"))).expect(204);
    let revoked = client.with_key(key["key"].as_str().map(str::to_owned));
    revoked.get("/v1/models").expect_error(401, "unauthorized");
    let before = listing(&client);

    // Room again, and no restart.
    disk.make_room();
    let started = Instant::now();
    while client.get("/ready").status != 200 {
        assert!(started.elapsed() < NO_MORE_WAITING, "{}", client.get("/ready").text);
        std::thread::sleep(Duration::from_millis(50));
    }
    check_date(&client);
    verify_offline(&client, &disk.data());
    assert_eq!(listing(&client), before);
    for answer in write_everything(&client) {
        assert!(matches!(answer.status, 200 | 201), "{} {}", answer.status, answer.text);
    }
    verify_offline(&client, &disk.data());
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

#[test]
fn a_host_that_dies_on_a_full_disk_starts_when_there_is_room() {
    let test = "a_host_that_dies_on_a_full_disk_starts_when_there_is_room";
    on_a_small_disk(test, restart_on_a_full_disk);
}

fn restart_on_a_full_disk(disk: &Disk) {
    let mut server = disk.start("restart_on_a_full_disk");
    deploy_examples(&server.client());
    let before = listing(&server.client());
    let running: Vec<_> = (0..4).map(|_| begin(&server.client(), 400)).collect();
    disk.leave(0);
    expect_full(date(&server.client()));
    server.kill();
    drop((running, server));

    // Without any room it either starts, or says why not.
    let said = start_and_end(&disk.data());
    eprintln!("on a full disk: {said}");
    assert!(said.contains("ready, base") || said.contains("no room"), "{said}");
    mount(disk, "remount,ro");
    let said = start_and_end(&disk.data());
    eprintln!("on a read-only disk: {said}");
    assert!(said.contains("Read-only file system") && !said.contains("panicked"), "{said}");
    mount(disk, "remount,rw");

    disk.make_room();
    let server = disk.start("restart_on_a_full_disk");
    files::check(&disk.data());
    assert_eq!(listing(&server.client()), before);
    check_date(&server.client());
    verify_offline(&server.client(), &disk.data());
}

fn mount(disk: &Disk, options: &str) {
    let status = Command::new("mount").args(["-o", options]).arg(&disk.root).status().expect("mount runs");
    assert!(status.success(), "mount -o {options}");
}

/// What the host says until it ends by itself, or is ready and told to end.
pub(super) fn start_and_end(data: &Path) -> String {
    let mut command = tenon();
    command.args(["serve", "--dev", "--listen", "127.0.0.1:0", "--base"]).arg(base().expect("a base"));
    command.arg("--data").arg(data).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("tenon starts");
    let out = std::io::BufReader::new(child.stdout.take().expect("piped"));
    let mut said = String::new();
    for line in out.lines().map_while(Result::ok) {
        said += &line;
        said.push('\n');
        if line.contains("ready, base") {
            break;
        }
    }
    drop(child.kill());
    let output = child.wait_with_output().expect("it ends");
    said + &String::from_utf8_lossy(&output.stderr)
}
