//! Does what its configuration's `script` says, or the request's text if there is none: commands, separated by `|`, each with
//! arguments after spaces. It answers with one line for each: what came of it, or the error. A number before a command, as in `20*kv-set
//! b k v`, does it so often and tells the last outcome.

use tenon_sdk::kv::Bucket;
use tenon_sdk::{
    Decision, HttpRequest, Plan, Policy, Request, Result, Tool, catalog, config, secrets, tokenizer, tools,
};

struct Imports;

impl Policy for Imports {
    fn route(request: &Request) -> Result<Decision> {
        let script = config::get("script").unwrap_or_else(|| request.text.clone());
        let lines: Vec<String> = script.split('|').map(line).collect();
        Ok(Decision::Answer(lines.join("\n")))
    }

    fn compose(request: &Request) -> Result<Plan> {
        Ok(Plan::new(request.prompt()))
    }
}

fn line(command: &str) -> String {
    let (times, command) = command.split_once('*').unwrap_or(("1", command));
    let mut outcome = String::new();
    for _ in 0..times.parse().unwrap_or(1) {
        outcome = done(command.trim()).unwrap_or_else(|error| format!("error: {error}"));
    }
    outcome
}

/// `x1000` stands for as many letters.
fn grown(text: &str) -> String {
    match text.strip_prefix('x').and_then(|count| count.parse().ok()) {
        Some(count) => "x".repeat(count),
        None => text.to_owned(),
    }
}

fn done(command: &str) -> Result<String> {
    let words: Vec<&str> = command.split(' ').collect();
    let text =
        |value: Option<Vec<u8>>| value.map_or("nothing".to_owned(), |v| String::from_utf8_lossy(&v).into_owned());
    Ok(match words.as_slice() {
        ["kv-open", bucket] => format!("{:?}", Bucket::open(bucket).map(drop)?),
        ["kv-get", bucket, key] => text(Bucket::open(bucket)?.get(&grown(key))?),
        ["kv-set", bucket, key, value] => {
            Bucket::open(bucket)?.set(&grown(key), grown(value).as_bytes())?;
            "set".to_owned()
        }
        ["kv-delete", bucket, key] => {
            Bucket::open(bucket)?.delete(key)?;
            "deleted".to_owned()
        }
        ["kv-add", bucket, key, delta] => {
            let delta = delta.parse().map_err(|_| "a number")?;
            Bucket::open(bucket)?.increment(key, delta)?.to_string()
        }
        ["kv-keys", bucket] => Bucket::open(bucket)?.keys()?.join(","),
        // Between the look and the swap someone else is quicker.
        ["kv-lost-swap", bucket, key] => {
            let bucket = Bucket::open(bucket)?;
            let snapshot = bucket.snapshot(key)?;
            bucket.set(key, b"theirs")?;
            match bucket.swap(snapshot, b"ours")? {
                Ok(()) => "swapped".to_owned(),
                Err(now) => format!("lost to {}", String::from_utf8_lossy(now.value().unwrap_or_default())),
            }
        }
        ["kv-swap", bucket, key, value] => {
            let bucket = Bucket::open(bucket)?;
            let snapshot = bucket.snapshot(key)?;
            format!("{}", bucket.swap(snapshot, value.as_bytes())?.is_ok())
        }
        ["kv-hold", bucket, count] => {
            let count = count.parse().unwrap_or(0);
            let held = (0..count).map(|_| Bucket::open(bucket)).collect::<Result<Vec<_>>>()?;
            format!("{} held", held.len())
        }
        ["secret", name] => secrets::get(name)?,
        ["get", url] => told(HttpRequest::get(*url))?,
        ["get-with-secret", url, name] => told(HttpRequest::get(*url).header("authorization", &secrets::get(name)?))?,
        ["post", url, body] => told(HttpRequest::post(*url, grown(body)))?,
        ["header", url, name, value] => told(HttpRequest::get(*url).header(name, &grown(value)))?,
        ["method", url, method] => told(HttpRequest { method: (*method).to_owned(), ..HttpRequest::get(*url) })?,
        ["encode", rest @ ..] => format!("{:?}", tokenizer::encode(&grown(&rest.join(" ")))?),
        ["count", rest @ ..] => tokenizer::count(&grown(&rest.join(" ")))?.to_string(),
        ["decode", tokens @ ..] => {
            let tokens: Vec<u32> = tokens.iter().filter_map(|token| token.parse().ok()).collect();
            tokenizer::decode(&tokens)?
        }
        ["round", rest @ ..] => tokenizer::decode(&tokenizer::encode(&rest.join(" "))?)?,
        ["tools", server] => {
            let tools = tools::list(server)?;
            let told = |tool: Tool| format!("{}: {} {}", tool.name, tool.description, tool.input_schema);
            tools.into_iter().map(told).collect::<Vec<_>>().join("; ")
        }
        ["tool", server, tool, arguments @ ..] => {
            let outcome = tools::call(server, tool, &grown(&arguments.join(" ")))?;
            let word = if outcome.is_error { "failed" } else { "done" };
            format!("{word}: {}, {:?}", outcome.text.replace('\n', "/"), outcome.structured)
        }
        ["prefetch", adapters @ ..] => {
            let adapters: Vec<String> = adapters.iter().map(|name| (*name).to_owned()).collect();
            catalog::prefetch(&adapters)?;
            "hinted".to_owned()
        }
        ["log", context, rest @ ..] => {
            logging(context, &rest.join(" "));
            "logged".to_owned()
        }
        ["config", name] => format!("{:?}", standard_config(name)),
        _ => return Err(format!("there is no command `{command}`").into()),
    })
}

fn told(request: HttpRequest) -> Result<String> {
    let answer = request.send()?;
    Ok(format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body)))
}

#[cfg(target_arch = "wasm32")]
fn logging(context: &str, message: &str) {
    use tenon_sdk::bindings::wasi::logging::logging::{Level, log};
    let levels = [Level::Trace, Level::Debug, Level::Info, Level::Warn, Level::Error, Level::Critical];
    levels.into_iter().for_each(|level| log(level, context, message));
}

#[cfg(target_arch = "wasm32")]
fn standard_config(name: &str) -> Option<String> {
    use tenon_sdk::bindings::wasi::config::store;
    let one = store::get(name).ok().flatten();
    let all = store::get_all().ok().unwrap_or_default();
    one.filter(|one| all.contains(&(name.to_owned(), one.clone())))
}

#[cfg(not(target_arch = "wasm32"))]
fn logging(_: &str, message: &str) {
    tenon_sdk::log::info(message);
}

#[cfg(not(target_arch = "wasm32"))]
fn standard_config(name: &str) -> Option<String> {
    config::get(name)
}

tenon_sdk::export_policy!(Imports);
