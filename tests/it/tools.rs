//! Tools of MCP servers, as plugins call them: a real server (PyPI's `mcp`, the protocol's official SDK), and servers that misbehave.
//! `cargo xtask test --stage clients` installs the real one; where it is not, its test says that it was skipped.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use serde_json::{Value, json};
use tests::{Client, Options, Server, deploy_plugin, repository, shared_server, skip, tenant_key};

/// What leaves time to an unoptimised host on a machine that has others to serve.
const TOO_BUSY_TO_HURRY: &str = "[plugin_http]\nprivate_networks = ['127.0.0.0/8']\n\
    [limits]\nplugin_call_wall_ms_max = 60000\nplugin_call_cpu_ms_max = 5000\n";
const TOKEN: &str = "t0ken-of-tools-2917";

/// The real server, ended with the test.
struct ToolServer {
    child: Child,
    port: u16,
    lines: Receiver<String>,
}

impl ToolServer {
    fn start(test: &str, environment: &[(&str, &str)]) -> Option<Self> {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
        let folder = target.join("clients").join("mcp");
        if !folder.join("installed").is_file() {
            skip(test, "target/clients/mcp is not there (cargo xtask test --stage clients says why)");
            return None;
        }
        let mut command = Command::new(folder.join("bin").join("python"));
        command.arg(repository().join("tests").join("clients").join("mcp").join("server.py"));
        command.envs(environment.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the server starts");
        let mut output = BufReader::new(child.stdout.take().expect("its output")).lines();
        let first = output.next().expect("a line").expect("text");
        let port = first.strip_prefix("port ").and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("{first}"));
        let (sender, lines) = channel();
        std::thread::spawn(move || output.map_while(Result::ok).for_each(|line| drop(sender.send(line))));
        Some(Self { child, port, lines })
    }

    fn grant(&self, tools: &[&str]) -> Value {
        json!({"server": "facts", "url": format!("http://127.0.0.1:{}/mcp", self.port), "tools": tools, "secret": "tools-key"})
    }
}

impl Drop for ToolServer {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

/// What the guest `imports` answers to a script, a line for each command.
fn script(client: &Client, function: &str, commands: &[&str]) -> Vec<String> {
    let path = format!("/v1/functions/{function}/invoke");
    let answer = client.post(&path, &json!({"input": commands.join("|")})).expect(200).json();
    answer["output"].as_str().expect("an output").lines().map(str::to_owned).collect()
}

fn patient_server(test: &str) -> Option<Server> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tenon.toml");
    std::fs::write(&file, TOO_BUSY_TO_HURRY).unwrap();
    let arguments = vec!["--config".to_owned(), file.display().to_string()];
    Server::start(test, Options { arguments, ..Options::default() })
}

#[test]
fn a_real_server_s_tools_are_listed_and_called_as_granted() {
    let name = "a_real_server_s_tools_are_listed_and_called_as_granted";
    for as_json in [false, true] {
        let environment = [("TOKEN", TOKEN), ("JSON", "1")];
        let Some(facts) = ToolServer::start(name, &environment[..1 + usize::from(as_json)]) else { return };
        let Some(server) = patient_server(name) else { return };
        let client = server.client();
        client.put("/v1/secrets/tools-key", &json!({"value": TOKEN})).expect(204);
        let some = facts.grant(&["depth", "add", "broken", "picture", "letters", "missing", "echo_token"]);
        let limits = json!({"tool_calls_max": 7, "http_response_bytes_max": 20_000});
        deploy_plugin(&client, "some", "imports", &json!({"grants": {"tools": [some]}, "limits": limits}));
        deploy_plugin(&client, "one", "imports", &json!({"grants": {"tools": [facts.grant(&["depth"])]}}));
        deploy_plugin(&client, "none", "imports", &json!({"grants": {"http": [facts.grant(&[])["url"]]}}));

        let said = script(
            &client,
            "some",
            &[
                r#"tool facts depth {"sea": "Baltic"}"#,
                r#"tool facts add {"first": 2, "second": 3}"#,
                "tool facts broken",
                "tool facts picture {}",
                "tool facts missing",
                r#"tool facts depth {"lake": 1}"#,
                "tool facts depth [1]",
                "tool facts depth",
            ],
        );
        assert_eq!(said[0], r#"done: The Baltic is 600 m deep., Some("{\"result\":\"The Baltic is 600 m deep.\"}")"#);
        assert!(said[1].starts_with("done: ") && said[1].ends_with(r#"Some("{\"sum\":5}")"#), "{said:?}");
        assert!(said[2].starts_with("failed: ") && said[2].contains("broken"), "{said:?}");
        assert_eq!(said[3], "done: before/[image]/after, None");
        assert!(said[4].contains("missing") && !said[4].starts_with("done"), "{said:?}");
        assert!(said[5].starts_with("failed: ") && said[5].contains("sea"), "{said:?}");
        assert!(said[6].contains("no JSON object"), "{said:?}");
        assert!(said[7].contains("tool_calls_max of 7"), "{said:?}");
        let long =
            script(&client, "some", &[r#"tool facts letters {"count": 30000}"#, r#"tool facts letters {"count": 3}"#]);
        assert!(long[0].contains("http_response_bytes_max of 20000"), "{long:?}");
        assert!(long[1].contains("done: xxx"), "what was too long ends nothing else: {long:?}");

        let echoed = script(&client, "some", &["tool facts echo_token"]);
        assert_eq!(echoed[0], "done: I was called with [credential]., None");

        let listed = script(&client, "one", &["tools facts", "tool facts add {}", "tool other depth", "tools other"]);
        assert!(listed[0].starts_with("depth: How deep a sea is. {") && listed[0].contains("\"sea\""), "{listed:?}");
        assert!(!listed[0].contains("add:") && listed[1].contains("the tool `add` of `facts`"), "{listed:?}");
        assert!(listed[2].contains("grants.tools") && listed[3].contains("grants.tools"), "{listed:?}");
        assert!(script(&client, "none", &["tools facts"])[0].contains("grants.tools"));

        // The credential is the host's: the plugin does not read it, no log tells it, and without it nothing is answered.
        assert!(script(&client, "one", &["secret tools-key"])[0].contains("grants.secrets"));
        assert!(!server.log().contains(TOKEN));
        client.put("/v1/secrets/tools-key", &json!({"value": "another"})).expect(204);
        let refused = script(&client, "one", &["tools facts"]);
        assert!(refused[0].contains("credential"), "{refused:?}");
        client.delete("/v1/secrets/tools-key").expect(204);
        assert!(script(&client, "one", &["tools facts"])[0].contains("no secret `tools-key`"));
        drop(server);
        let calls = facts.lines.try_iter().filter(|line| line == "called depth Baltic").count();
        assert_eq!(calls, 1, "one call is one call");
    }
}

#[test]
fn a_copy_of_a_request_calls_no_tool() {
    let name = "a_copy_of_a_request_calls_no_tool";
    let Some(facts) = ToolServer::start(name, &[]) else { return };
    let Some(server) = patient_server(name) else { return };
    let client = server.client();
    client.put("/v1/secrets/tools-key", &json!({"value": TOKEN})).expect(204);
    let grants = json!({"grants": {"tools": [facts.grant(&["*"])]}});
    deploy_plugin(&client, "called", "imports", &grants);
    deploy_plugin(&client, "called", "imports", &grants);
    client.put("/v1/functions/called/shadow", &json!({"version": 1})).expect(200);
    assert!(script(&client, "called", &[r#"tool facts depth {"sea": "North"}"#])[0].contains("500 m"));
    // The shadow's report has the copy once it ended; what it would have called was denied to it.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(120);
    loop {
        let shadow = client.get("/v1/functions/called/shadow").expect(200).json();
        if shadow["different"] == json!(1) {
            break;
        }
        assert!(shadow["equal"] == json!(0) && std::time::Instant::now() < deadline, "no copy was refused: {shadow}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    drop(server);
    assert_eq!(facts.lines.try_iter().filter(|line| line.starts_with("called depth")).count(), 1);
}

/// Reads a request's head and body, if they come.
fn asked(stream: &mut TcpStream) -> Option<String> {
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line == "\r\n" {
            break;
        }
        head += &line;
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(head + &String::from_utf8_lossy(&body))
}

/// Answers every request alike, for ever if the answer has no end.
fn bad_server(answer: &'static str, endless: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                if asked(&mut stream).is_none() || stream.write_all(answer.as_bytes()).is_err() {
                    return;
                }
                while endless && stream.write_all(&[b'x'; 4096]).is_ok() {}
            });
        }
    });
    port
}

#[test]
fn servers_that_misbehave_cost_an_error() {
    let name = "servers_that_misbehave_cost_an_error";
    let Some(server) = patient_server(name) else { return };
    let client = server.client();
    let initialized = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n\
        {\"jsonrpc\":\"2.0\",\"id\":0,\"result\":{\"protocolVersion\":\"1999-01-01\",\"capabilities\":{},\"serverInfo\":{}}}";
    let cases: [(&str, &'static str, bool, &str); 9] = [
        ("empty", "", false, "tool server `empty`"),
        (
            "no-mcp",
            "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 2\r\n\r\nhi",
            false,
            "does not speak MCP",
        ),
        (
            "no-json",
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\nhi",
            false,
            "does not speak MCP",
        ),
        (
            "no-events",
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 9\r\n\r\ndata: hi\n",
            false,
            "tool server",
        ),
        ("broken", "HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n", false, "an HTTP error"),
        ("moved", "HTTP/1.1 307 On\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n", false, "redirect"),
        ("closed", "HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n", false, "credential"),
        ("strange", initialized, false, "tool server `strange`"),
        (
            "endless",
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n",
            true,
            "http_response_bytes_max of 100000",
        ),
    ];
    for (function, answer, endless, expected) in cases {
        let url = format!("http://127.0.0.1:{}/mcp", bad_server(answer, endless));
        let grant = json!({"server": function, "url": url, "tools": ["*"]});
        let limits = json!({"http_response_bytes_max": 100_000, "call_wall_ms_max": 20_000});
        deploy_plugin(&client, function, "imports", &json!({"grants": {"tools": [grant]}, "limits": limits}));
        let said = script(&client, function, &[&format!("tools {function}"), "config x"]);
        assert!(said[0].starts_with("error: ") && said[0].contains(expected), "{function}: {said:?}");
        assert_eq!(said[1], "None", "{function}: the request goes on");
    }
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

#[test]
fn tools_at_private_addresses_and_bad_grants_are_refused() {
    let Some(server) = shared_server("tools_at_private_addresses_and_bad_grants_are_refused") else { return };
    let operator = server.client();
    let client = operator.with_key(Some(tenant_key(&operator, "tools-ssrf", &["invoke", "deploy"])));
    let port = bad_server("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false);
    for (number, host) in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "169.254.169.254"].into_iter().enumerate() {
        let grant = json!({"server": "s", "url": format!("http://{host}:{port}/mcp"), "tools": ["*"]});
        let function = format!("ssrf-{number}");
        deploy_plugin(&client, &function, "imports", &json!({"grants": {"tools": [grant]}}));
        let said = script(&client, &function, &["tools s", "tool s x"]);
        assert!(said.iter().all(|line| line.contains("public address")), "{host}: {said:?}");
    }
    let plugin = client.upload_plugin(tests::guest("imports"));
    for (grant, expected) in [
        (json!({"server": "s", "url": "tools.example.com", "tools": ["*"]}), "grants.tools has `tools.example.com`"),
        (json!({"server": "../s", "url": "https://a.example", "tools": ["*"]}), "grants.tools has `../s`"),
        (json!({"server": "s", "url": "https://a.example", "tools": []}), "it grants no tool"),
        (json!({"server": "s", "url": "https://a.example", "tools": [""]}), "1 to 128 bytes"),
        (json!({"server": "s", "url": "https://a.example", "tools": ["*"], "secret": "*"}), "grants.tools has `*`"),
    ] {
        let manifest = json!({"plugin": plugin, "grants": {"tools": [grant]}});
        let error = client.put("/v1/functions/bad", &manifest).expect_error(400, "invalid_manifest");
        assert!(error.text.contains(expected), "{}", error.text);
    }
}
