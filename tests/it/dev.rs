//! `tenon dev`: what is changed is built and deployed, what fails is said and does not end it, and the function's log comes along. Also
//! what `tenon new` writes of an agent.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};
use tests::{Server, base, guest, run_tenon, shared_server, skip, tenon};

/// What a line may take to come, on a machine that has others to serve.
const LINE_MAX: Duration = Duration::from_secs(120);

/// A project in Python whose tools are there already, and copy the component that `app.py` names.
fn project(folder: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let project = folder.join("a-project");
    let programs = project.join(".venv").join("bin");
    std::fs::create_dir_all(&programs).unwrap();
    std::fs::write(project.join("requirements.txt"), "tenon-sdk").unwrap();
    std::fs::write(project.join(".venv").join(".tenon-installed"), "tenon-sdk").unwrap();
    let python = programs.join("python");
    std::fs::write(&python, "#!/bin/sh\ncp \"$(cat app.py)\" \"$6\"\n").unwrap();
    std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
    project
}

/// Has the project make this guest.
fn edit(project: &Path, guest_name: &str) {
    let component = project.parent().unwrap().join(format!("{guest_name}.component"));
    if !guest_name.starts_with("no-") {
        std::fs::write(&component, guest(guest_name)).unwrap();
    }
    std::fs::write(project.join("app.py"), component.to_str().unwrap()).unwrap();
}

/// A running `tenon dev`, killed at the end.
struct Dev {
    child: Child,
    lines: Receiver<Value>,
    errors: Option<std::thread::JoinHandle<String>>,
}

impl Dev {
    fn start(server: &Server, project: &Path, arguments: &[&str]) -> Self {
        let mut command = tenon();
        command.args(["dev", "--json", project.to_str().unwrap()]).args(arguments);
        command.env("TENON_URL", server.url()).env("TENON_KEY_FILE", server.data().join("dev.key"));
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let _gone = sender.send(serde_json::from_str(&line).unwrap_or(json!({"no JSON": line})));
            }
        });
        let mut output = child.stderr.take().unwrap();
        let errors = std::thread::spawn(move || {
            let mut text = String::new();
            drop(output.read_to_string(&mut text));
            text
        });
        Self { child, lines, errors: Some(errors) }
    }

    /// The next line that has this.
    fn wait(&self, member: &str, value: &str) -> Value {
        let mut seen = Vec::new();
        loop {
            let line = self.lines.recv_timeout(LINE_MAX).unwrap_or_else(|_| panic!("no {member} {value}: {seen:?}"));
            if line[member] == value {
                return line;
            }
            seen.push(line);
        }
    }

    /// As Ctrl-C does it; what it said of failures.
    fn interrupt(&mut self) -> String {
        let id = self.child.id().to_string();
        assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
        assert!(self.child.wait().unwrap().success(), "an interrupted loop has ended well");
        self.errors.take().unwrap().join().unwrap()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn a_change_is_live_and_a_failure_does_not_end_it() {
    let Some(server) = shared_server("a_change_is_live_and_a_failure_does_not_end_it") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let project = project(folder.path());
    edit(&project, "skill-router");
    let mut dev = Dev::start(server, &project, &["--name", "dev-loop", "--adapter", "iso-date"]);
    assert_eq!(dev.wait("event", "watching")["files"], json!(2));
    let deployed = dev.wait("event", "deployed");
    assert_eq!((&deployed["version"], &deployed["live"]), (&json!(1), &json!(1)), "{deployed}");
    let client = server.client();
    let invoke =
        || client.post("/v1/functions/dev-loop/invoke", &json!({"input": "December 7th, 1997", "max_tokens": 4}));
    invoke().expect(200);
    assert_eq!(dev.wait("message", "chose iso-date")["level"], json!("info"));
    // What does not build leaves what is there, and the next change is tried.
    edit(&project, "no-such-guest");
    dev.wait("event", "building");
    invoke().expect(200);
    edit(&project, "echo");
    let deployed = dev.wait("event", "deployed");
    assert_eq!((&deployed["version"], &deployed["live"]), (&json!(2), &json!(2)), "{deployed}");
    let live = client.get("/v1/functions/dev-loop").expect(200).json();
    assert_eq!(live["plugin"], deployed["plugin"]);
    // The same component is not another version.
    std::fs::write(project.join("notes.txt"), "a thought").unwrap();
    dev.wait("event", "unchanged");
    let said = dev.interrupt();
    assert!(said.contains(r#""code":"build_failed""#), "{said}");
    assert_eq!(client.get("/v1/functions/dev-loop/versions").expect(200).json()["data"].as_array().unwrap().len(), 2);
}

#[test]
fn once_ends_with_what_came_of_it() {
    let Some(server) = shared_server("once_ends_with_what_came_of_it") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let project = project(folder.path());
    edit(&project, "no-such-guest");
    let key = server.key();
    let once = |more: &[&str]| {
        let typed = ["dev", project.to_str().unwrap(), "--once", "--url", server.url(), "--key", &key];
        run_tenon(&typed.into_iter().chain(more.iter().copied()).collect::<Vec<_>>())
    };
    let failed = once(&[]);
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    edit(&project, "echo");
    let done = once(&[]);
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success() && said.contains("a-project version 1 is live"), "{said}");
    server.client().get("/v1/functions/a-project").expect(200);
    // What a project must be granted is in its folder.
    edit(&project, "agent-probe");
    std::fs::write(project.join("manifest.json"), r#"{"grants": {"generations": true}}"#).unwrap();
    assert!(once(&["--name", "an-agent"]).status.success());
    let invoked = server.client().post("/v1/functions/an-agent/invoke", &json!({"input": "open a hi\ntokens a"}));
    let answer = invoked.expect(200).json()["output"].as_str().unwrap().to_owned();
    assert!(answer.parse::<u32>().is_ok(), "{answer}");
    // One that is ended before it has done anything has not done it.
    std::fs::write(project.join(".venv/bin/python"), "#!/bin/sh\nsleep 2\n").unwrap();
    let mut command = tenon();
    command.args(["dev", project.to_str().unwrap(), "--once", "--url", server.url(), "--key", &key]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "tenon dev: building\n");
    assert!(std::process::Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(String::from_utf8_lossy(&ended.stderr).contains("before anything was deployed"), "{ended:?}");
}

#[test]
fn a_host_of_its_own_is_there_for_the_time_being() {
    let Some(base) = base() else {
        skip("a_host_of_its_own_is_there_for_the_time_being", "the base is not there (cargo xtask base)");
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let project = project(folder.path());
    edit(&project, "echo");
    let (project, data) = (project.to_str().unwrap(), folder.path().join("data"));
    let own = ["--serve", "--base", base.to_str().unwrap(), "--data", data.to_str().unwrap()];
    let done = run_tenon(&["dev", project, "--once", "--json"].into_iter().chain(own).collect::<Vec<_>>());
    let value: Value = serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{done:?}"));
    assert_eq!((done.status.code(), &value["version"]), (Some(0), &json!(1)), "{value}");
    assert!(data.join("state.redb").is_file(), "its state is where it was told");
    let refused = run_tenon(&["dev", project, "--once", "--serve"]);
    assert_eq!(refused.status.code(), Some(2), "a host needs a base");
}

#[test]
fn an_agent_s_project_is_written_with_what_it_must_be_granted() {
    let folder = tempfile::tempdir().expect("a folder");
    let into = folder.path().to_str().unwrap();
    for lang in ["rust", "python", "js", "ts"] {
        let name = format!("agent-{lang}");
        let made = run_tenon(&["new", &name, "--lang", lang, "--world", "agent", "--into", into]);
        let project = folder.path().join(&name);
        let manifest = project.join("manifest.json");
        let said = String::from_utf8_lossy(&made.stdout).into_owned();
        assert!(made.status.success() && said.contains(&format!("--manifest {}", manifest.display())), "{made:?}");
        let granted: Value = serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
        assert_eq!(granted["grants"]["generations"], json!(true));
        let readme = std::fs::read_to_string(project.join("README.md")).unwrap();
        assert!(readme.contains("--manifest manifest.json") && readme.contains(&name), "{readme}");
    }
    let refused = run_tenon(&["new", "none", "--lang", "c", "--world", "agent", "--into", into]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no template of an agent in C"), "{refused:?}");
    assert!(!folder.path().join("none").exists());
}
